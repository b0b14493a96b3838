"""A network in two parts is the network itself: bit for bit where it runs as a whole, and where its own features are
given back to its shallow layers."""

from dataclasses import replace

import pytest
import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from torch import nn

from tests.worker.tiny_models import LABELS, tiny_unet
from worker.networks.architecture import Architecture, NetworkSource, TextShape
from worker.networks.cpu.forms import CPU, prepare_on_cpu
from worker.networks.deep_features import FEATURES, FeatureReuse, feature_reuse, unpacked
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import InputSpec
from worker.networks.unet2d import UNet2D
from worker.networks.unet2d_condition import UNet2DCondition
from worker.store.denoiser_config import feature_channels


def deeper() -> UNet2DModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return UNet2DModel(
            sample_size=16,
            layers_per_block=2,
            block_out_channels=(16, 32, 32),
            norm_num_groups=8,
            attention_head_dim=8,
            down_block_types=("AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D"),
        )


def of_text() -> UNet2DConditionModel:
    with torch.random.fork_rng():
        torch.manual_seed(2)
        return UNet2DConditionModel(
            sample_size=8,
            block_out_channels=(16, 32),
            layers_per_block=2,
            norm_num_groups=8,
            attention_head_dim=8,
            cross_attention_dim=12,
            down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        )


@pytest.fixture(scope="module", params=["classes", "deeper", "text"])
def network(request: pytest.FixtureRequest) -> tuple[nn.Module, Architecture, InputSpec]:
    match request.param:
        case "classes":
            unet = tiny_unet()
            return unet.eval(), UNet2D(), UNet2D().input_spec(unet.config, (1, 8, 8))
        case "deeper":
            unet = deeper()
            return unet.eval(), UNet2D(), UNet2D().input_spec(unet.config, (3, 16, 16))
        case _:
            unet = of_text()
            return (
                unet.eval(),
                UNet2DCondition(),
                UNet2DCondition().input_spec(unet.config, (4, 8, 8), TextShape(5, 12)),
            )


Divided = tuple[Denoiser, FeatureReuse, InputSpec]


@pytest.fixture(scope="module")
def divided(network: tuple[nn.Module, Architecture, InputSpec]) -> Divided:
    unet, architecture, spec = network
    source = NetworkSource(architecture, lambda: unet, spec, torch.float32, f"divided {spec}", "a test")
    channels = feature_channels(dict(unet.config))  # type: ignore[arg-type]
    assert channels is not None
    prepared = prepare_on_cpu(source, threads=2)
    reuse = feature_reuse(
        prepared.network, channels, source.denoiser, prepared.around, spec, CPU, torch.float32, is_exact=False
    )
    while spec.shape not in reuse:
        reuse.prepare_some(spec.shape)
    return prepared.denoise, reuse, spec


@torch.inference_mode()
def test_a_network_that_keeps_its_features_says_what_it_says_without(divided: Divided) -> None:
    denoise, reuse, spec = divided
    inputs = spec.probe(5)
    output, features = unpacked(reuse.keeping(spec.shape)(inputs), spec.shape, reuse.channels)
    assert torch.equal(output, denoise(inputs))
    assert features.shape == (5, reuse.channels, *spec.shape[1:])
    assert len({float(row.sum()) for row in features}) == 5


@torch.inference_mode()
def test_shallow_layers_on_the_features_of_the_same_step_are_the_whole_network(divided: Divided) -> None:
    denoise, reuse, spec = divided
    inputs = spec.probe(5)
    _, features = unpacked(reuse.keeping(spec.shape)(inputs), spec.shape, reuse.channels)
    given = replace(inputs, named={**inputs.named, FEATURES: features})
    assert torch.equal(reuse.reusing(spec.shape)(given), denoise(inputs))
    other = replace(inputs, named={**inputs.named, FEATURES: features + 1})
    assert not torch.equal(reuse.reusing(spec.shape)(other), denoise(inputs)), "they are not read"


@torch.inference_mode()
def test_both_forms_are_exact_in_batches(divided: Divided) -> None:
    _, reuse, spec = divided
    inputs = spec.probe(6)
    both = reuse.keeping(spec.shape)(inputs)
    _, features = unpacked(both, spec.shape, reuse.channels)
    given = replace(inputs, named={**inputs.named, FEATURES: features})
    for rows in ([3], [5, 0], [4, 2, 1]):
        assert torch.equal(reuse.keeping(spec.shape)(inputs[rows]), both[rows])
        assert torch.equal(reuse.reusing(spec.shape)(given[rows]), reuse.reusing(spec.shape)(given)[rows])


def test_a_network_of_one_level_or_of_other_blocks_can_not_be_divided() -> None:
    config = dict(tiny_unet().config)
    assert feature_channels(config) == 32, len(LABELS)
    assert feature_channels({**config, "layers_per_block": 2}) == 16
    assert feature_channels({**config, "up_block_types": ["AttnUpBlock2D", "SkipUpBlock2D"]}) is None
    one = {"block_out_channels": [16], "down_block_types": ["DownBlock2D"], "up_block_types": ["UpBlock2D"]}
    assert feature_channels({**config, **one}) is None
    assert feature_channels({"_class_name": "DiTTransformer2DModel", "num_layers": 28}) is None

"""Keys and values of cross-attention, made once per text: what the network draws with them is the same."""

from typing import Any

import pytest
import torch
from diffusers.models.activations import GEGLU
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from torch import nn

from tests.worker.stable_diffusion import wider_unet
from tests.worker.text_pipeline import text_unet
from worker.networks.architecture import TextShape
from worker.networks.cpu.batch_invariant import make_batch_invariant
from worker.networks.cpu.fast_blocks import CompiledAttention, FastTransformerBlock
from worker.networks.cpu.jit.available import cpu_kernels
from worker.networks.cpu.jit.layers import CompiledGeglu
from worker.networks.cpu.team import CpuTeam
from worker.networks.exactness import is_batch_invariant
from worker.networks.network_input import MOST_DRAWN, InputSpec, NamedInput
from worker.networks.text_projections import (
    TEXT_PROJECTIONS,
    TEXTS_KEPT,
    TextProjections,
    TextProjector,
    projections_of,
    split_text,
    without_text,
)
from worker.networks.unet2d_condition import (
    TEXT_EMBEDS,
    TEXT_STATES,
    TIME_IDS,
    UNet2DCondition,
    UNet2DConditionDenoiser,
)

TOKENS = 7
XL: dict[str, Any] = {
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 6 * 8 + 32,
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
}


def fixed(unet: Any, inputs: InputSpec) -> UNet2DConditionDenoiser:
    denoise = UNet2DCondition().denoiser(unet, torch.float32)
    make_batch_invariant(unet, denoise, inputs, CpuTeam(1))
    return denoise


@pytest.mark.parametrize("make", [wider_unet, lambda: wider_unet(**XL), text_unet], ids=["sd", "xl", "pooled"])
@torch.inference_mode()
def test_a_network_draws_the_same_with_its_text_read_once(make: Any) -> None:
    unet, split = make(), make()
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    plain = UNet2DCondition().input_spec(unet.config, shape, TextShape(TOKENS, 32, 32))
    assert split_text(split, TOKENS)
    inputs = without_text(UNet2DCondition(), unet.config, plain, TEXT_STATES)
    rows = plain.probe(3)
    expected = fixed(unet, plain)(rows)
    denoise, projections = fixed(split, inputs), projections_of(split)
    assert projections is not None
    texts = [projections(states) for states in rows.named[TEXT_STATES]]
    named = {name: rows.named[name] for name in (TEXT_EMBEDS, TIME_IDS) if name in rows.named}
    rows = type(rows)(rows.x, rows.t, {**named, TEXT_PROJECTIONS: torch.stack(texts)})
    assert {name: tuple(value.shape[1:]) for name, value in rows.named.items()} == {
        declared.name: declared.shape for declared in inputs.named
    }
    assert torch.equal(denoise(rows), expected)
    assert torch.equal(denoise(rows[[1]])[0], expected[1])


@pytest.mark.parametrize("make", [wider_unet, lambda: wider_unet(**XL)], ids=["sd", "xl"])
@torch.inference_mode()
def test_the_kernels_attend_to_pixels_and_to_the_text(make: Any) -> None:
    kernels = cpu_kernels()
    assert kernels is not None
    unet, plain = make(), make()
    shape = (unet.config.in_channels, unet.config.sample_size, unet.config.sample_size)
    inputs = UNet2DCondition().input_spec(unet.config, shape, TextShape(TOKENS, 32, 32))
    denoise = UNet2DCondition().denoiser(unet, torch.float32)
    blocks = sum(isinstance(module, BasicTransformerBlock) for module in unet.modules())
    make_batch_invariant(unet, denoise, inputs, CpuTeam(1), kernels=kernels)
    kinds = [type(module) for module in unet.modules()]
    assert kinds.count(FastTransformerBlock) == kinds.count(CompiledGeglu) == blocks > 0
    assert kinds.count(CompiledAttention) == 2 * blocks
    assert not {Attention, BasicTransformerBlock, GEGLU} & set(kinds)
    rows = inputs.probe(3)
    torch.testing.assert_close(denoise(rows), UNet2DCondition().denoiser(plain, torch.float32)(rows))
    assert is_batch_invariant(denoise, inputs, torch.device("cpu"))


def test_a_network_that_reads_its_text_in_another_way_is_left_as_it_is() -> None:
    unet = wider_unet()
    unet.down_blocks[1].attentions[0].transformer_blocks[0].attn2.norm_k = nn.LayerNorm(8)
    assert not split_text(unet, TOKENS)
    assert projections_of(unet) is None


def test_a_text_is_projected_once_while_it_is_among_the_last() -> None:
    made = []

    class Noting(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            made.append(float(x.sum()))
            return super().forward(x)

    projections = TextProjections()
    stand_in = projections.take(Noting(4, 5, bias=False), TOKENS, 5)
    project = TextProjector(projections)
    texts = [torch.full((TOKENS, 4), float(number)) for number in range(TEXTS_KEPT + 1)]
    first = project(0, texts[0])
    assert first.shape == (1, TOKENS * 5)
    assert torch.equal(stand_in(first[None])[0], projections.layers[0](texts[0]))
    made.clear()
    assert project(0, texts[0]) is first
    assert made == []
    for number, text in enumerate(texts):
        project(number, text)
    project(0, texts[0])
    assert len(made) == TEXTS_KEPT + 1
    assert project.most_bytes == TEXTS_KEPT * TOKENS * 5 * 4


def test_an_input_of_millions_is_probed_with_numbers_that_repeat() -> None:
    spec = InputSpec((1, 2, 2), (NamedInput("large", (1, MOST_DRAWN + 3), torch.float32),))
    first, second = spec.probe(2).named["large"]
    assert torch.equal(first[0, MOST_DRAWN:], first[0, :3])
    assert not torch.equal(first, second)

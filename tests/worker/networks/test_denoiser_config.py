"""One table of configurations: what import refuses, a worker that finds it in the store refuses too."""

from collections.abc import Iterator
from inspect import signature

import pytest

from worker.networks.architecture import TextShape
from worker.networks.registry import ARCHITECTURES
from worker.store.component_rules import RULES, SYSTEMS
from worker.store.denoiser_config import INPAINTING_CHANNELS, SUPPORTED, read_denoiser_config
from worker.store.errors import BadCheckpoint

SIDE = 32
"""diffusers' default of a Transformer, which takes no other states."""
CASES = [(name, key) for name, keys in SUPPORTED.items() for key in keys]


def configs(class_name: str, key: str) -> Iterator[tuple[dict[str, object], int]]:
    """Each supported value of a key, with the channels that it makes."""
    default, values = SUPPORTED[class_name][key]
    channels = SUPPORTED[class_name]["in_channels"][0]
    assert isinstance(channels, int)
    for value in (default, *values):
        if key in ("in_channels", "out_channels"):
            channels_of_value = channels if value is None else value
            assert isinstance(channels_of_value, int)
            if value == INPAINTING_CHANNELS:
                yield {"in_channels": value, "out_channels": channels}, channels
            else:
                yield {"in_channels": channels_of_value, "out_channels": value}, channels_of_value
        else:
            beside = {"addition_time_embed_dim": 4, "projection_class_embeddings_input_dim": 8 + 6 * 4}
            yield {key: value, "in_channels": channels, "out_channels": channels, **beside}, channels


def test_every_network_that_can_be_run_has_its_rules() -> None:
    assert SUPPORTED.keys() == ARCHITECTURES.keys() == SYSTEMS.keys()


@pytest.mark.parametrize(("class_name", "key"), CASES)
def test_the_store_and_the_networks_take_the_same_configurations(class_name: str, key: str) -> None:
    text_shape = TextShape(16, 1280, 8) if class_name == "UNet2DConditionModel" else None
    for config, channels in configs(class_name, key):
        RULES[class_name].check(config, "m")
        spec = ARCHITECTURES[class_name].input_spec(config, (channels, SIDE, SIDE), text_shape)
        assert spec.shape == (channels, SIDE, SIDE)
        refused = config | {key: "another"}
        with pytest.raises(BadCheckpoint, match=f"need {key} .*, got 'another'"):
            RULES[class_name].check(refused, "m")
        with pytest.raises(BadCheckpoint, match=f"need {key} .*, got 'another'"):
            ARCHITECTURES[class_name].input_spec(refused, (channels, SIDE, SIDE), text_shape)


def test_a_configuration_without_a_key_means_what_diffusers_takes_for_it() -> None:
    from diffusers import DiTTransformer2DModel, UNet2DConditionModel, UNet2DModel

    for model_class in (UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel):
        parameters = signature(model_class.__init__).parameters
        for key, (default, _) in SUPPORTED[model_class.__name__].items():
            assert default == parameters[key].default, key
    assert read_denoiser_config("UNet2DConditionModel", {}).text_width == 1280


def test_a_network_of_other_channels_than_the_images_is_refused() -> None:
    with pytest.raises(BadCheckpoint, match="need in_channels and out_channels 1, got 3"):
        ARCHITECTURES["UNet2DModel"].input_spec({}, (1, 8, 8))


def test_a_number_of_classes_is_a_whole_number() -> None:
    with pytest.raises(BadCheckpoint, match="need num_class_embeds as a whole number, got 'ten'"):
        read_denoiser_config("UNet2DModel", {"num_class_embeds": "ten"})
    assert read_denoiser_config("UNet2DModel", {"num_class_embeds": 10}).num_classes == 10

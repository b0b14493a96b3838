"""New weights in the place of old ones: what runs on a GPU is recorded for two networks of a kind and never again."""

import base64
from itertools import repeat

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.engine.harness import Driver, SlowDevice, ask, draw, same_pixels
from tests.worker.networks.counted_card import REQUEST, SIZES, Card, fresh, publish
from worker.contract import SamplerName
from worker.engine.messages import Succeeded
from worker.models.errors import BrokenModel
from worker.store.manifest import GoldenSample
from worker.store.model_store import ModelStore


def test_five_reloads_record_one_network_more_and_each_version_draws_its_own_pixels(store: ModelStore) -> None:
    card = Card(store)
    assert same_pixels(draw(card.pool, REQUEST), fresh(store))
    pictures = set()
    for number in range(1, 6):
        version = publish(store, number).version
        card.poll()
        assert card.serving == version
        drawn = draw(card.pool, REQUEST)
        assert same_pixels(drawn, fresh(store))
        pictures.add(drawn[0].tobytes())
    assert len(pictures) == 5
    assert card.capture.recorded[: len(SIZES)] == list(reversed(SIZES))
    assert card.recordings == 2 * len(SIZES)


def test_a_networks_weights_stay_while_a_row_or_a_step_under_way_uses_them(store: ModelStore) -> None:
    card = Card(store)
    expected = draw(card.pool, REQUEST)
    driver = Driver(card.pool, read_back=SlowDevice(repeat(10**9)))
    driver.submit("early", REQUEST)
    driver.step()
    for number in (1, 2, 3):
        publish(store, number)
        card.poll()
        driver.step()
    assert card.serving.startswith("000000004")
    assert card.recordings == 3 * len(SIZES), "the first network was not free"
    assert not driver.reported(Succeeded)
    driver.finish()
    assert same_pixels(driver.images("early"), expected)
    publish(store, 4)
    card.poll()
    assert card.recordings == 3 * len(SIZES), "a network that rows had left took the weights"
    assert same_pixels(draw(card.pool, REQUEST), fresh(store))


def test_a_canceled_requests_network_is_not_written_before_its_last_step_has_landed(store: ModelStore) -> None:
    card = Card(store)
    driver = Driver(card.pool, read_back=SlowDevice(repeat(10**9)))
    driver.submit("doomed", ask(steps=1))
    driver.step()
    driver.engine.cancel("doomed")
    driver.engine.take_messages()
    publish(store, 1)
    card.poll()
    assert card.networks.spare_bytes() == 0
    driver.finish()
    assert card.networks.spare_bytes() > 0


@pytest.mark.parametrize("number_of_reloads", [1, 2])
def test_a_bad_checkpoint_does_no_harm_to_what_serves_or_comes_next(store: ModelStore, number_of_reloads: int) -> None:
    """One that draws another golden sample is found out only when its weights lie in the spare."""
    card = Card(store)
    for number in range(1, 1 + number_of_reloads):
        publish(store, number)
        card.poll()
    serving, drawn, recordings = card.serving, draw(card.pool, REQUEST), card.recordings
    pixels = base64.b64encode(bytes(64)).decode()
    golden = GoldenSample(seed=0, steps=2, sampler=SamplerName.DDIM, class_label=0, pixels_base64=pixels, tolerance=0.5)
    publish(store, 10, golden)
    card.poll()
    (info,) = card.pool.describe()
    assert info.reload_error is not None
    assert "golden sample" in info.reload_error
    truncated = publish(store, 11)
    (truncated.path / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"short")
    card.poll()
    assert card.serving == serving
    assert same_pixels(draw(card.pool, REQUEST), drawn)
    good = publish(store, 12).version
    card.poll()
    assert card.serving == good
    assert same_pixels(draw(card.pool, REQUEST), fresh(store))
    assert card.recordings == max(recordings, 2 * len(SIZES)), "the spare took the weights"


def test_a_spare_is_not_touched_by_weights_that_are_refused(store: ModelStore) -> None:
    """Those whose hashes are right: not finite, say."""
    card = Card(store)
    publish(store, 1)
    card.poll()
    spare_bytes = card.networks.spare_bytes()
    assert spare_bytes > 0
    path = "unet/diffusion_pytorch_model.safetensors"
    broken = publish(store, 2)
    weights = load_file(broken.path / path)
    weights["conv_in.bias"].fill_(torch.nan)
    save_file(weights, broken.path / path, metadata={"format": "pt"})
    with pytest.raises(BrokenModel, match=r"conv_in\.bias is not finite"):
        card.load(broken)
    assert card.networks.spare_bytes() == spare_bytes

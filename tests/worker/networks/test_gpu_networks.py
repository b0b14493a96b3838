"""New weights in the place of old ones: what runs on a GPU is recorded for two networks of a kind and never again."""

import base64
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.worker.engine.harness import (
    CPU,
    Driver,
    FaultyDenoiser,
    HandClock,
    SlowDevice,
    ask,
    draw,
    filled_pool,
    plain,
    same_pixels,
)
from tests.worker.networks.captures import RunAgain
from tests.worker.networks.prepared import TINY_SPEC
from tests.worker.tiny_models import TINY, publish_tiny
from worker.contract import MemoryUse, SamplerName
from worker.engine.messages import Succeeded
from worker.models.errors import BrokenModel
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.networks.batch_form import ExactMode
from worker.networks.cuda.networks import GpuNetworks
from worker.networks.padded import PadBatch
from worker.networks.shared_choices import LocalChoices
from worker.store.manifest import GoldenSample
from worker.store.model_store import Checkpoint, ModelStore

SIZES = (1, 2, 4)
REQUEST = ask(seed=3, steps=4, batch=3, class_label=1)


@dataclass
class Card:
    """A worker's networks as on a GPU, with every recording counted."""

    store: ModelStore
    capture: RunAgain = field(default_factory=RunAgain)

    def __post_init__(self) -> None:
        self.networks = GpuNetworks(self.capture)
        self.clock = HandClock()
        self.pool = self.pool_with(self.load)
        self.poll()

    def pool_with(self, load: Callable[[Checkpoint], LoadedModel], memory_budget_bytes: int | None = None) -> ModelPool:
        return ModelPool(
            self.store, load, memory_budget_bytes=memory_budget_bytes, spares=self.networks, clock=self.clock
        )

    def load(self, checkpoint: Checkpoint) -> LoadedModel:
        return load_checkpoint(
            checkpoint, CPU, torch.float32, pad_batch=PadBatch.SIZES, max_batch=SIZES[-1], networks=self.networks
        )

    def poll(self) -> None:
        """Take up what is new and let go of what nobody has come for."""
        self.pool.poll()
        self.pool.load_pending()
        self.clock.now += 60
        self.pool.poll()

    @property
    def recordings(self) -> int:
        return len(self.capture.recorded)

    @property
    def serving(self) -> str:
        (info,) = self.pool.describe()
        assert info.version is not None
        return info.version


@pytest.fixture
def store(tmp_path: Path) -> ModelStore:
    store = ModelStore(tmp_path / "store")
    publish_tiny(store)
    return store


def publish(store: ModelStore, number: int, golden: GoldenSample | None = None) -> Checkpoint:
    checkpoint = publish_tiny(store, weights_seed=number, step=number + 1, make_current=golden is None)
    if golden is not None:
        path = checkpoint.path / "manifest.json"
        path.write_text(checkpoint.manifest.model_copy(update={"golden": golden}).model_dump_json())
        store.promote(TINY, checkpoint.version)
    return checkpoint


def fresh(store: ModelStore) -> tuple[NDArray[np.uint8], ...]:
    """What a worker that has just started draws."""
    return draw(Card(store).pool, REQUEST)


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
    assert not driver.told(Succeeded)
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


def test_one_spare_of_a_kind_is_kept(store: ModelStore) -> None:
    card = Card(store)
    first = card.pool.acquire(TINY)
    publish(store, 1)
    card.poll()
    second = card.pool.acquire(TINY)
    publish(store, 2)
    card.poll()
    assert first is not None
    assert second is not None
    card.pool.release(first)
    assert card.networks.spare_bytes() == first.weight_bytes
    card.pool.release(second)
    assert card.networks.spare_bytes() == first.weight_bytes


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


def test_spares_count_in_the_budget_and_leave_first(store: ModelStore) -> None:
    first = Card(store)
    size, _ = (first.load(store.checkpoint(TINY)).weight_bytes for _ in range(2))
    recordings = first.networks.recording_bytes()  # of three networks
    assert recordings > 0, "they count too"
    for budget, spare in ((2 * size + recordings, size), (2 * size + recordings - 1, 0)):
        card = Card(store)
        card.pool = card.pool_with(card.load, budget)
        card.poll()
        publish_tiny(store, weights_seed=budget, step=budget)
        card.poll()
        assert len(card.pool.resident()) == 1
        assert card.networks.spare_bytes() == spare


def test_what_counts_in_the_budget_is_told(store: ModelStore) -> None:
    card = Card(store)
    size = card.load(store.checkpoint(TINY)).weight_bytes
    recordings = card.networks.recording_bytes()
    assert size > 0
    assert recordings > 0
    assert card.pool.memory() == MemoryUse(weight_bytes=size, recording_bytes=recordings)
    old = card.pool.acquire(TINY)
    assert old is not None
    publish(store, 1)
    card.poll()
    (info,) = card.pool.describe()
    assert info.memory_bytes == card.pool.memory().weight_bytes == 2 * size, "rows run on the old version still"
    card.pool.release(old)
    (info,) = card.pool.describe()
    assert info.memory_bytes == size
    recordings = card.networks.recording_bytes()
    assert card.pool.memory() == MemoryUse(weight_bytes=size, spare_bytes=size, recording_bytes=recordings)
    assert card.pool.drop_spares()
    assert card.pool.memory().spare_bytes == 0


def test_a_load_that_finds_no_memory_takes_the_spares(store: ModelStore) -> None:
    card = Card(store)
    publish(store, 1)
    card.poll()
    other = publish_tiny(store, "other", weights_seed=5)
    tried: list[str] = []

    def load(checkpoint: Checkpoint) -> LoadedModel:
        tried.append(checkpoint.model)
        if card.networks.spare_bytes():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return card.load(checkpoint)

    card.pool = card.pool_with(load)
    assert card.networks.spare_bytes() > 0
    card.pool.acquire("other", other.version)
    card.pool.load_pending()
    assert tried == ["other", "other"]
    assert card.pool.acquire("other", other.version) is not None


def test_an_engine_that_finds_no_memory_takes_the_spares_before_it_makes_its_batches_smaller(
    store: ModelStore,
) -> None:
    card = Card(store)

    def full_with_a_spare(x_t: Tensor, timesteps: Tensor) -> None:
        if card.networks.spare_bytes():
            raise torch.OutOfMemoryError("CUDA out of memory")

    def load(checkpoint: Checkpoint) -> LoadedModel:
        model = card.load(checkpoint)
        return replace(model, denoise=FaultyDenoiser(model.denoise, full_with_a_spare))

    card.pool = card.pool_with(load)
    card.poll()
    publish(store, 1)
    card.poll()
    driver = Driver(card.pool, max_batch=4)
    driver.submit("job", REQUEST)
    driver.finish()
    assert same_pixels(driver.images("job"), fresh(store))
    assert driver.engine.max_batch == 4


def test_what_cannot_be_recorded_runs_without_and_is_not_tried_again(
    store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        card = Card(store, capture=RunAgain(refuses=lambda size: size == 2))
        publish(store, 1)
        card.poll()
    assert caplog.text.count("can't be recorded") == 1
    assert "not permitted when stream is capturing" in caplog.text
    assert card.recordings == 1, "the largest size of the first network"
    assert card.networks.spare_bytes() == 0
    assert same_pixels(draw(card.pool, REQUEST), fresh(store))


def full_for(tries: int) -> RunAgain:
    """A device that has no memory for the largest recording so often."""
    left = iter([True] * tries)
    no_memory = torch.OutOfMemoryError("CUDA out of memory")
    return RunAgain(refuses=lambda size: size == SIZES[-1] and next(left, False), error=no_memory)


def test_a_recording_that_finds_no_memory_is_tried_again_when_what_is_free_is_given_back(store: ModelStore) -> None:
    """While it records, the allocator can't take back what it keeps."""
    card = Card(store, capture=full_for(1))
    assert card.capture.rooms_made == 1
    assert card.capture.recorded == list(reversed(SIZES))
    assert same_pixels(draw(card.pool, REQUEST), fresh(store))


def test_a_network_that_found_no_memory_to_be_recorded_runs_without_and_the_next_is_tried(store: ModelStore) -> None:
    card = Card(store, capture=full_for(2))
    assert card.recordings == 0
    publish(store, 1)
    card.poll()
    assert card.capture.recorded == list(reversed(SIZES))
    assert same_pixels(draw(card.pool, REQUEST), fresh(store))


def test_an_engine_that_finds_no_memory_during_a_recording_waits_for_its_end(store: ModelStore) -> None:
    """Nothing can be given back meanwhile: its batch is not halved for what may be there a moment later."""
    card = Card(store)
    publish(store, 1)
    card.poll()
    recording, may_end = threading.Event(), threading.Event()
    other = publish_tiny(store, "other", conditional=False)

    def slow(size: int) -> bool:
        recording.set()
        may_end.wait(30)
        return False

    card.capture.refuses = slow
    loader = threading.Thread(target=card.load, args=(other,))
    loader.start()
    assert recording.wait(30)
    spare_bytes = card.networks.spare_bytes()
    threading.Timer(0.2, may_end.set).start()
    assert card.pool.drop_spares(), "something has changed: try again"
    assert may_end.is_set()
    loader.join(30)
    assert card.networks.spare_bytes() == spare_bytes > 0


def test_a_network_that_must_be_exact_runs_in_the_sizes_that_agree(store: ModelStore) -> None:
    """torch's own kernels on a CPU round a row alone in another way than among others, as a GPU's do."""
    capture = RunAgain()
    networks = GpuNetworks(capture, exact=ExactMode.REQUIRE, measure=lambda call: 1.0)

    def load(checkpoint: Checkpoint) -> LoadedModel:
        return load_checkpoint(
            checkpoint, CPU, torch.float32, pad_batch=PadBatch.SIZES, max_batch=SIZES[-1], networks=networks
        )

    pool = filled_pool(store, load)
    together = draw(pool, REQUEST)
    alone = [draw(pool, plain(REQUEST, seed=REQUEST.seed + i, batch=1))[0] for i in range(REQUEST.batch)]
    assert same_pixels(together, alone)
    publish(store, 1)
    pool.poll()
    pool.load_pending()
    assert capture.recorded[: len(SIZES)] == list(reversed(SIZES))
    assert set(capture.recorded[len(SIZES) :]) < set(SIZES), "the second network of the kind records what serves"


def test_a_form_that_another_worker_has_chosen_is_kept_to(store: ModelStore) -> None:
    """Two workers of one queue draw the same pixels, also where exactness is worth its price to one of them only."""
    choices = LocalChoices()
    forms = []
    for seconds in ((1.0, 2.0, 4.0), (1.0, 1.0, 1.0)):  # to the second, keeping to sizes that agree costs nothing
        clock = iter(seconds)
        networks = GpuNetworks(RunAgain(), exact=ExactMode.PREFER, measure=lambda call, clock=clock: next(clock))  # type: ignore[misc]
        load = partial(load_checkpoint, device=CPU, dtype=torch.float32, pad_batch=PadBatch.SIZES, max_batch=SIZES[-1])
        forms.append(load(store.checkpoint(TINY), networks=networks, choices=choices).execution)
    assert forms[0] == forms[1]
    assert not forms[0].exact
    assert forms[0].exact_cost is not None


def test_a_network_that_leaves_the_range_of_float16_runs_in_float32(
    store: ModelStore, caplog: pytest.LogCaptureFixture
) -> None:
    def dtype_of(weights: float) -> str:
        checkpoint = publish(store, int(weights))
        path = checkpoint.path / "unet/diffusion_pytorch_model.safetensors"
        loud = {name: value * weights if name == "conv_in.weight" else value for name, value in load_file(path).items()}
        save_file(loud, path, metadata={"format": "pt"})
        model = load_checkpoint(checkpoint, CPU, torch.float16, max_batch=2, networks=GpuNetworks(RunAgain()))
        assert bool(torch.isfinite(model.denoise(TINY_SPEC.probe(2))).all())
        return model.execution.dtype

    assert dtype_of(1.0) == "float16"
    assert dtype_of(1e6) == "float32"
    assert "leave the range of float16, it runs in float32" in caplog.text

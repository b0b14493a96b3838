"""In which form a network runs on a GPU: recorded or not, exact or not, in float16 or not."""

import logging
from functools import partial

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.engine.harness import CPU, draw, filled_pool, plain, same_pixels
from tests.worker.networks.captures import RunAgain
from tests.worker.networks.counted_card import REQUEST, SIZES, Card, fresh, publish
from tests.worker.networks.prepared import TINY_SPEC
from tests.worker.tiny_models import TINY
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.networks.batch_form import ExactMode
from worker.networks.cuda.networks import GpuNetworks
from worker.networks.padded import PadBatch
from worker.networks.shared_choices import LocalChoices
from worker.store.model_store import Checkpoint, ModelStore


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

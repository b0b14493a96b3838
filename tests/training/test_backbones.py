"""Transformers by configuration: trained, published, opened by diffusers, and served."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiTPipeline

from tests.training.tiny import quick
from tests.worker.engine.harness import Driver, ask, filled_pool
from training.__main__ import main
from training.data.examples import null_label
from training.errors import ConfigurationError, DataError
from training.evaluate import Options, measure_distribution
from training.opening import open_version
from training.sources import load_sources
from training.transformer import build_transformer
from worker.store import ModelStore

QUICK = ["--steps", "3", "--batch", "8", "--held-out-rows", "64", "--fresh"]
TINY = ["--backbone", "dit", "--width", "32", "--depth", "2", "--heads", "2"]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ModelStore:
    """With a tiny Transformer that learns its variance, trained on digits for three steps."""
    root = tmp_path_factory.mktemp("training")
    where = ["--store", str(root / "store"), "--state", str(root / "state"), "--model", "tiny"]
    assert main([*where, *QUICK, *TINY, "--learned-variance"], {}) == 0
    return ModelStore(root / "store")


def test_a_transformer_begins_as_nothing_and_knows_no_class_beside_its_classes() -> None:
    """Zeros at the start, as its authors have it; labels are dropped with the batch and not once more in each block."""
    network = build_transformer((1, 8, 8), 3, width=32, depth=2, heads=2, patch=2, seed=0).train()
    x_t, labels = torch.randn(2, 1, 8, 8), torch.tensor([0, 3])
    assert not bool(network(x_t, torch.tensor([1, 2]), labels, return_dict=False)[0].any())
    embedder: Any = network.transformer_blocks[1].norm1.emb.class_embedder
    assert torch.equal(embedder(labels), embedder.embedding_table.weight[labels])


def test_diffusers_opens_it_with_its_labels(store: ModelStore) -> None:
    folder = store.checkpoint("tiny").path
    pipeline: Any = DiTPipeline.from_pretrained(folder, vae=None)
    assert pipeline.labels["7"] == 7
    assert pipeline.scheduler.config.variance_type == "learned_range"


def test_the_worker_serves_it(store: ModelStore) -> None:
    """Its golden output is checked at load; guided images of three labels at a time are those drawn alone."""
    pool = filled_pool(store)
    together, apart = Driver(pool), {}
    for label in range(3):
        asked = ask(seed=label, steps=4, class_label=label, guidance_scale=2.0)
        together.submit(str(label), asked)
        alone = Driver(pool)
        alone.submit("only", asked)
        alone.finish()
        (apart[label],) = alone.images("only")
    together.finish()
    for label, image in apart.items():
        assert np.array_equal(together.images(str(label))[0], image)


def test_images_without_classes_are_all_of_one(tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).integers(0, 256, (24, 8, 8), dtype=np.uint8))
    train, held_out = load_sources(quick(data=str(tmp_path / "grey.npy"), backbone="dit"))
    assert train.label_names == held_out.label_names == ("any",)
    assert null_label(train) == 1
    labels = train.batch(torch.tensor([1, 5]), torch.Generator()).labels
    assert labels is not None
    assert labels.tolist() == [0, 0]


def test_a_model_of_one_class_can_be_measured(tmp_path: Path) -> None:
    np.save(tmp_path / "grey.npy", np.random.default_rng(0).integers(0, 256, (96, 8, 8), dtype=np.uint8))
    where = ["--store", str(tmp_path / "store"), "--state", str(tmp_path / "state"), "--model", "grey"]
    assert main([*where, *QUICK, *TINY, "--data", str(tmp_path / "grey.npy")], {}) == 0
    version = open_version("grey", ModelStore(tmp_path / "store"))
    numbers = measure_distribution(version, *load_sources(version.configuration), Options(samples=8, steps=2))
    assert 0 <= numbers["two_sample_accuracy"] <= 1


@pytest.mark.parametrize(
    ("settings", "shape", "reason"),
    [
        ({"width": 48}, (1, 8, 8), "need a width that is a multiple of 32 and of 2 heads, got 48"),
        ({"patch": 3}, (1, 8, 8), "need images whose sides are multiples of the patch of 3, got 8"),
        ({}, (1, 8, 12), "need square images for a Transformer, got 12x8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(settings: dict[str, int], shape: tuple[int, int, int], reason: str) -> None:
    width, patch = settings.get("width", 32), settings.get("patch", 2)
    with pytest.raises(ConfigurationError, match=reason):
        build_transformer(shape, 2, width=width, depth=1, heads=2, patch=patch, seed=0)


def test_captions_are_refused() -> None:
    with pytest.raises(DataError, match="has captions, and a Transformer takes labels: need --backbone unet"):
        load_sources(quick(data="emoji", backbone="dit"))

"""The safety checker that a folder brings: asked image by image, and what it objects to is black."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
from transformers import CLIPConfig, CLIPImageProcessorPil

from tests.worker.engine.harness import CPU, Driver, ask, filled_pool
from tests.worker.stable_diffusion import SD, sd_pipeline, seeded, wider_unet
from worker.contract import SamplingRequest, TextCondition
from worker.engine.messages import Succeeded
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.store import BadCheckpoint, Checkpoint, ModelStore
from worker.store.component_rules import SAFETY_PARTS
from worker.store.pipeline_import import import_pipeline

TOWER = {"hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2, "num_hidden_layers": 1}
NOISE, BLACK = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8), np.zeros((16, 16, 3), np.uint8)


def tiny_checker(threshold: float) -> StableDiffusionSafetyChecker:
    """Objects to an image whose likeness to a concept is above the threshold: with -2 to all, with 2 to none."""
    vision = {**TOWER, "image_size": 32, "patch_size": 8, "projection_dim": 8}
    config = CLIPConfig(
        text_config={**TOWER, "vocab_size": 16, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
        vision_config=vision,
        projection_dim=8,
    )

    def make() -> StableDiffusionSafetyChecker:
        checker = StableDiffusionSafetyChecker(config).eval()
        checker.concept_embeds.data = torch.randn(17, 8)
        checker.special_care_embeds.data = torch.randn(3, 8)
        checker.concept_embeds_weights.data.fill_(threshold)
        checker.special_care_embeds_weights.data.fill_(2.0)
        return checker

    return seeded(make)


def processor() -> Any:
    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def imported(store: ModelStore, folder: Path, threshold: float, *, taken: bool = True) -> Checkpoint:
    parts = sd_pipeline(unet=wider_unet()).components
    parts |= {"safety_checker": tiny_checker(threshold), "feature_extractor": processor()}
    StableDiffusionPipeline(**parts, requires_safety_checker=True).save_pretrained(folder)
    return import_pipeline(store, folder, SD, safety_checker=taken)


def checking(checkpoint: Checkpoint) -> LoadedModel:
    return load_checkpoint(checkpoint, CPU, torch.float32, safety_checker=True)


def prompted(**rest: Any) -> SamplingRequest:
    return ask(7, **{"model": SD, "condition": TextCondition(prompt="a cat"), "steps": 3, "batch": 2, **rest})


def drawn(pool: ModelPool, request: SamplingRequest) -> Succeeded:
    driver = Driver(pool)
    driver.submit("a", request)
    driver.finish()
    (succeeded,) = driver.reported(Succeeded)
    return succeeded


@pytest.mark.parametrize(("threshold", "flagged"), [(-2.0, True), (2.0, False)])
def test_an_image_that_it_objects_to_is_black_and_the_job_says_so(
    tmp_path: Path, threshold: float, flagged: bool
) -> None:
    store = ModelStore(tmp_path / "store")
    checkpoint = imported(store, tmp_path / "saved", threshold)
    plain = drawn(filled_pool(store), prompted(frames=3))
    assert plain.flagged == ()
    assert plain.provenance is not None
    assert plain.provenance.computation.checked is None
    checked = drawn(filled_pool(store, checking), prompted(frames=3))
    assert checked.flagged == (flagged, flagged)
    assert checked.provenance is not None
    assert checked.provenance.computation.checked
    for image, unseen in zip(checked.images, plain.images, strict=True):
        assert np.array_equal(image, np.zeros_like(unseen) if flagged else unseen)
    assert all(not frame.any() for frames in checked.frames for frame in frames) == flagged
    assert {*SAFETY_PARTS} <= checkpoint.manifest.components.keys()


def test_its_verdict_is_that_of_the_reference_image_by_image(tmp_path: Path) -> None:
    """At a threshold between the likeness of one image and of the other."""
    reference, clip = tiny_checker(0.0), processor()
    pictures = [NOISE, BLACK]

    def likeness(picture: np.ndarray[Any, Any]) -> float:
        with torch.inference_mode():
            pooled = reference.vision_model(clip(images=[picture], return_tensors="pt").pixel_values)[1]
            return float(torch.cosine_similarity(reference.visual_projection(pooled), reference.concept_embeds).max())

    between = sum(map(likeness, pictures)) / 2
    model = checking(imported(ModelStore(tmp_path / "store"), tmp_path / "saved", between))
    checker = StableDiffusionSafetyChecker.from_pretrained(tmp_path / "saved" / "safety_checker").eval()
    clip_input = clip(images=pictures, return_tensors="pt").pixel_values
    _, expected = checker(images=[picture / 255 for picture in pictures], clip_input=clip_input)
    assert model.checker is not None
    assert [model.checker(picture) for picture in pictures] == expected
    assert sorted(expected) == [False, True]


def test_one_that_is_not_taken_or_not_run_is_named(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    assert imported(store, tmp_path / "saved", 2.0, taken=False).manifest.skipped == sorted(SAFETY_PARTS)
    imported(store, tmp_path / "again", 2.0)
    for not_run, skipped in ((frozenset(SAFETY_PARTS), sorted(SAFETY_PARTS)), (frozenset(), [])):
        pool = ModelPool(store, checking, not_run=not_run)
        pool.poll()
        (info,) = pool.describe()
        assert info.skipped == skipped


def test_a_checker_without_its_feature_extractor_is_refused(tmp_path: Path) -> None:
    imported(ModelStore(tmp_path / "store"), tmp_path / "saved", 2.0)
    index = tmp_path / "saved" / "model_index.json"
    index.write_text(json.dumps(json.loads(index.read_text()) | {"feature_extractor": [None, None]}))
    with pytest.raises(BadCheckpoint, match="safety_checker and feature_extractor need each other"):
        import_pipeline(ModelStore(tmp_path / "store"), tmp_path / "saved", SD, safety_checker=True)

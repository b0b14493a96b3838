"""What a cascade on disk must look like, and an import of one."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.worker.cascades import LEG, OWN_NOISE, publish_cascade, super_resolution_unet
from tests.worker.tiny_models import publish_tiny
from worker.store import ModelStore, PublishFailed
from worker.store.errors import BadCheckpoint
from worker.store.pipeline_import import import_pipeline


@pytest.mark.parametrize(
    ("second", "reason"),
    [
        ({"unet": {"channels": 3}}, "need a super_resolution of 1 channels, got 3"),
        ({"unet": {"side": 8}}, "enlarges 8x8"),
        ({"unet": {"class_embed_type": None}}, "need class_embed_type timestep"),
        ({"leg": {**LEG, "noise_level": 401}}, "noise_level <= max_noise_level"),
        ({"leg": {**LEG, "max_noise_level": 1000}}, "max_noise_level < 1000"),
        ({"leg": {**LEG, "steps": 0}}, "1 <= steps <= 1000"),
        ({"leg": {"steps": 3}}, "need noise_level as a whole number"),
        (
            {"own_noise": {**OWN_NOISE, "_class_name": "DDPMScheduler", "variance_type": "learned_range"}},
            "learned_range",
        ),
    ],
)
def test_a_second_leg_that_does_not_fit_is_not_published(
    tmp_path: Path, second: Mapping[str, Any], reason: str
) -> None:
    store = ModelStore(tmp_path)
    first = publish_tiny(store)
    given = {**second, "unet": super_resolution_unet(**second.get("unet", {}))}
    with pytest.raises(PublishFailed, match=reason):
        publish_cascade(store, first, **given)
    assert store.current("tiny") == first.version


def test_an_imported_cascade_is_the_one_that_was_published(tmp_path: Path) -> None:
    store, other = ModelStore(tmp_path / "one"), ModelStore(tmp_path / "other")
    published = publish_cascade(store, publish_tiny(store))
    imported = import_pipeline(other, published.path, "again", null_label=4, step=2)
    assert imported.manifest.components.keys() == published.manifest.components.keys()
    same = {name: part.sha256 for name, part in imported.manifest.components.items()}
    assert same["super_resolution"] == published.manifest.components["super_resolution"].sha256
    assert (imported.manifest.width, imported.manifest.labels) == (16, ["0", "1", "2", "3"])


def test_parts_of_a_second_leg_need_each_other(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "store")
    published = publish_cascade(store, publish_tiny(store))
    index = json.loads((published.path / "model_index.json").read_text())
    del index["image_noising_scheduler"]
    (published.path / "model_index.json").write_text(json.dumps(index))
    with pytest.raises(BadCheckpoint, match="a cascade lacks image_noising_scheduler"):
        import_pipeline(store, published.path, "again")

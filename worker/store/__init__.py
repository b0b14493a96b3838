"""The checkpoint store: published versions of models on disk. Loads no torch."""

from worker.store.bundled import bundled_store_path
from worker.store.errors import BadCheckpoint, ModelNotFound, PublishFailed, StoreError, StoreNotFound, VersionNotFound
from worker.store.manifest import FileRecord, GoldenOutput, GoldenSample, Manifest, Recipe
from worker.store.model_store import Checkpoint, ModelStore

__all__ = [
    "BadCheckpoint",
    "Checkpoint",
    "FileRecord",
    "GoldenOutput",
    "GoldenSample",
    "Manifest",
    "ModelNotFound",
    "ModelStore",
    "PublishFailed",
    "Recipe",
    "StoreError",
    "StoreNotFound",
    "VersionNotFound",
    "bundled_store_path",
]

"""The checkpoint store: published versions of models on disk. Loads no torch."""

from worker.store.bundled import BUNDLED_DEFAULT_MODEL, bundled_store_path
from worker.store.errors import BadCheckpoint, ModelNotFound, PublishFailed, StoreError, StoreNotFound, VersionNotFound
from worker.store.manifest import (
    Component,
    FileRecord,
    GoldenOutput,
    GoldenSample,
    Manifest,
    Recipe,
    RequestDefaults,
)
from worker.store.model_store import Checkpoint, ModelStore
from worker.store.pipeline_index import write_index, write_text_to_image_index

__all__ = [
    "BUNDLED_DEFAULT_MODEL",
    "BadCheckpoint",
    "Checkpoint",
    "Component",
    "FileRecord",
    "GoldenOutput",
    "GoldenSample",
    "Manifest",
    "ModelNotFound",
    "ModelStore",
    "PublishFailed",
    "Recipe",
    "RequestDefaults",
    "StoreError",
    "StoreNotFound",
    "VersionNotFound",
    "bundled_store_path",
    "write_index",
    "write_text_to_image_index",
]

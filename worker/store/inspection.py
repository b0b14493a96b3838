"""Reads one version's folder and checks it against its manifest."""

import os
from collections.abc import Callable, Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

from pydantic import ValidationError

from worker.store.component_rules import check_files
from worker.store.denoiser_config import feature_channels, read_denoiser_config
from worker.store.durable_files import hash_file
from worker.store.errors import BadCheckpoint
from worker.store.json_files import read_json_object
from worker.store.manifest import (
    MANIFEST_NAME,
    TRANSFORMER_CONFIG_PATH,
    UNET_CONFIG_PATH,
    VAE_CONFIG_PATH,
    FileRecord,
    Manifest,
)
from worker.store.super_resolution import has_super_resolution, read_super_resolution
from worker.store.vae_config import read_vae_config

UNSAFE_SUFFIXES = frozenset(
    {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".joblib", ".npy", ".npz", ".py", ".pyc", ".so"}
)
"""Formats whose loading can run code."""

MAX_MANIFEST_BYTES = 16_000_000

Fingerprint = frozenset[tuple[str, tuple[int, ...]]]
"""(path, facts from the file system) of everything in a folder."""


def read_manifest(folder: Path, model: str, version: str) -> Manifest:
    """Read the manifest of one version and check that it names that version. Hashes nothing."""
    where = f"{model}/{version}"
    path = folder / MANIFEST_NAME
    try:
        size_bytes = path.stat().st_size
        if size_bytes > MAX_MANIFEST_BYTES:
            raise BadCheckpoint(f"{where}: {MANIFEST_NAME} has {size_bytes} bytes, the limit is {MAX_MANIFEST_BYTES}")
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise BadCheckpoint(f"{where}: can't read {MANIFEST_NAME}: {error.strerror}") from error
    except ValidationError as error:
        raise BadCheckpoint(f"{where}: {MANIFEST_NAME} is not a manifest: {first_problem(error)}") from error
    if (manifest.model, manifest.version) != (model, version):
        raise BadCheckpoint(f"{where}: {MANIFEST_NAME} is about {manifest.model}/{manifest.version}")
    return manifest


def first_problem(error: ValidationError) -> str:
    """The first problem that pydantic found, in one line."""
    problem = error.errors(include_url=False)[0]
    place = ".".join(str(part) for part in problem["loc"])
    return f"{place}: {problem['msg']}" if place else problem["msg"]


def verify_files(
    folder: Path,
    manifest: Manifest,
    hash_of: Callable[[Path], FileRecord] = hash_file,
    in_memory: AbstractSet[str] = frozenset(),
) -> None:
    """Raise BadCheckpoint unless the folder holds exactly the files of the manifest, byte for byte.

    Args:
        in_memory: hashes of components that nobody is going to read: their files are only looked for.
    """
    unread = {name for name, component in manifest.components.items() if component.sha256 in in_memory}
    where = f"{manifest.model}/{manifest.version}"
    try:
        for path in files_below(folder, where):
            if path not in manifest.files and path != MANIFEST_NAME and not path.rsplit("/", 1)[-1].startswith("."):
                raise BadCheckpoint(f"{where}: {path} is not in the manifest")
        for path, record in manifest.files.items():
            if not (folder / path).is_file():
                raise BadCheckpoint(f"{where}: {path} is missing")
            if path.partition("/")[0] in unread:
                continue
            found = hash_of(folder / path)
            if found.size_bytes != record.size_bytes:
                raise BadCheckpoint(
                    f"{where}: {path} has {found.size_bytes} bytes, the manifest says {record.size_bytes}"
                )
            if found.sha256 != record.sha256:
                raise BadCheckpoint(f"{where}: {path} has SHA-256 {found.sha256}, the manifest says {record.sha256}")
    except OSError as error:
        raise BadCheckpoint(f"{where}: can't read {error.filename or folder}: {error.strerror}") from error
    check_structure(folder, {name: each.class_name for name, each in manifest.components.items()}, where)


def check_structure(folder: Path, components: Mapping[str, str], where: str) -> None:
    """Raise BadCheckpoint unless each component (name → class) has its files and every JSON file is a JSON object."""
    for name, class_name in components.items():
        check_files(folder, name, class_name, where)
    for path in files_below(folder, where):
        if path.endswith(".json"):
            read_json_object(folder, path, where)


def files_below(folder: Path, where: str) -> list[str]:
    """Relative paths of a version's files, sorted. Raises BadCheckpoint for links and for formats that can run code."""
    found = []
    for parent, folders, names in os.walk(folder, onerror=_raise):
        for name in [*folders, *names]:
            path = Path(parent, name)
            relative = path.relative_to(folder).as_posix()
            if path.is_symlink():
                raise BadCheckpoint(f"{where}: {relative} is a symbolic link; a version must hold its own files")
            if path.suffix.lower() in UNSAFE_SUFFIXES:
                raise BadCheckpoint(
                    f"{where}: {relative} is of a format that can run code; weights are safetensors only"
                )
            if name in names:
                found.append(relative)
    return sorted(found)


def denoiser_config_path(folder: Path) -> str:
    """Of a version or pipeline directory, relative to it."""
    return TRANSFORMER_CONFIG_PATH if (folder / TRANSFORMER_CONFIG_PATH).is_file() else UNET_CONFIG_PATH


def image_shape(folder: Path, where: str) -> tuple[int, int, int]:
    """(height, width, channels) of the images that a version draws at the size it was made for."""
    if has_super_resolution(folder):
        last = read_super_resolution(folder, where)
        return last.height, last.width, last.channels
    return first_image_shape(folder, where)


def first_image_shape(folder: Path, where: str) -> tuple[int, int, int]:
    """(height, width, channels) of the images of a version's first leg, which is the only one of most."""
    path = denoiser_config_path(folder)
    config = read_json_object(folder, path, where)
    size, channels, factor = config.get("sample_size"), config.get("in_channels"), 1
    if (folder / VAE_CONFIG_PATH).is_file():
        vae = read_json_object(folder, VAE_CONFIG_PATH, where)
        known = read_vae_config(vae)
        channels, factor = known.channels, known.factor
    height, width = size if isinstance(size, list) and len(size) == 2 else (size, size)
    if not (isinstance(height, int) and isinstance(width, int) and isinstance(channels, int)):
        raise BadCheckpoint(f"{where}: {path} lacks sample_size or in_channels: {size!r}, {channels!r}")
    return factor * height, factor * width, channels


def size_multiple(folder: Path, where: str) -> int | None:
    """Of which each side of a version's images must be one; None where it draws images of its own size alone.

    Raises BadCheckpoint.
    """
    config = read_json_object(folder, denoiser_config_path(folder), where)
    known = read_denoiser_config(str(config.get("_class_name", "UNet2DModel")), config)
    if known.only_size is not None or has_super_resolution(folder):
        return None
    multiple = known.multiple
    if (folder / VAE_CONFIG_PATH).is_file():
        multiple *= read_vae_config(read_json_object(folder, VAE_CONFIG_PATH, where)).factor
    return multiple


def can_reuse_features(folder: Path, where: str) -> bool:
    """Whether a version's network can be run in part. Raises BadCheckpoint."""
    return feature_channels(read_json_object(folder, UNET_CONFIG_PATH, where)) is not None


def reads_pictures(folder: Path, where: str) -> bool:
    """Whether a version's U-Net takes a mask and a masked picture beside its state. Raises BadCheckpoint."""
    config = read_json_object(folder, UNET_CONFIG_PATH, where)
    return read_denoiser_config(str(config.get("_class_name", "UNet2DModel")), config).picture_channels > 0


def folder_fingerprint(folder: Path) -> Fingerprint:
    """Inode, size, mode and times of everything below `folder`, skipping what can't be read."""
    seen = []
    for parent, folders, names in os.walk(folder):
        for path in (Path(parent), *(Path(parent, name) for name in [*folders, *names])):
            try:
                stat = path.lstat()
            except OSError:
                continue
            # Unlike st_mtime, st_ctime changes with the mode and can't be set back.
            facts = (stat.st_ino, stat.st_size, stat.st_mode, stat.st_mtime_ns, stat.st_ctime_ns)
            seen.append((path.relative_to(folder).as_posix(), facts))
    return frozenset(seen)


def _raise(error: OSError) -> None:
    raise error

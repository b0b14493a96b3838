"""Reads the header of a safetensors file and checks that the file is whole. Loads no torch.

Format: header length N as 8 bytes little-endian, N bytes of JSON, then the tensors' bytes without gaps
(https://github.com/huggingface/safetensors, "Format").
"""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_HEADER_BYTES = 100_000_000
"""The library's own limit."""

BITS_PER_ELEMENT = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E4M3": 8, "F8_E5M2": 8, "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class TensorInfo:
    dtype: str
    shape: tuple[int, ...]


def read_metadata(path: Path) -> dict[str, str]:
    """What the file says beside its tensors. Raises ValueError unless it has a header."""
    metadata = _header_of(path)[0].get("__metadata__", {})
    if not isinstance(metadata, dict):
        raise ValueError("its __metadata__ is not a JSON object")
    return {str(key): str(value) for key, value in metadata.items()}


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The file's tensors by name. Raises ValueError unless it is a whole safetensors file."""
    header, header_bytes, size_bytes = _header_of(path)
    return _tensors(header, header_bytes, size_bytes)


def _header_of(path: Path) -> tuple[dict[str, Any], int, int]:
    """The header, its length in bytes and that of the file."""
    with path.open("rb") as file:
        size_bytes = os.fstat(file.fileno()).st_size
        if size_bytes < 8:
            raise ValueError(f"need at least 8 bytes, got {size_bytes}")
        header_bytes = int.from_bytes(file.read(8), "little")
        if header_bytes > min(MAX_HEADER_BYTES, size_bytes - 8):
            raise ValueError(
                f"header of {header_bytes} bytes does not fit a file of {size_bytes}: not safetensors, or cut"
            )
        try:
            header = json.loads(file.read(header_bytes))
        except (ValueError, RecursionError) as error:
            raise ValueError(f"header is not JSON: {error}") from error
    if not isinstance(header, dict):
        raise ValueError("header is not a JSON object")
    return header, header_bytes, size_bytes


def _tensors(header: dict[str, Any], header_bytes: int, size_bytes: int) -> dict[str, TensorInfo]:
    spans: list[tuple[int, int]] = []
    tensors: dict[str, TensorInfo] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            info = TensorInfo(dtype=str(entry["dtype"]), shape=tuple(int(extent) for extent in entry["shape"]))
            begin, end = (int(offset) for offset in entry["data_offsets"])
            expected_bytes = math.prod(info.shape) * BITS_PER_ELEMENT[info.dtype] // 8
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"header entry of tensor {name!r} is malformed: {error!r}") from error
        if end - begin != expected_bytes:
            raise ValueError(f"tensor {name!r} of shape {info.shape} needs {expected_bytes} bytes, got {end - begin}")
        spans.append((begin, end))
        tensors[name] = info
    position = 0
    for begin, end in sorted(spans):
        if begin != position:
            raise ValueError(f"tensor data has a gap or an overlap at byte {position}")
        position = end
    if 8 + header_bytes + position != size_bytes:
        raise ValueError(f"need {8 + header_bytes + position} bytes for the tensors of the header, got {size_bytes}")
    return tensors

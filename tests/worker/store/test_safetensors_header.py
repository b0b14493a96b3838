"""A header is read whole, or refused with what is wrong with it; a file can cause no other error."""

import json
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from worker.store.safetensors_header import TensorInfo, read_header, read_metadata

ENTRY = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


def written(folder: Path, header: bytes | Any, data: bytes = bytes(8)) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "weights.safetensors"
    file.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return file


def test_what_the_library_writes_is_read(tmp_path: Path) -> None:
    file = tmp_path / "weights.safetensors"
    save_file({"a": torch.zeros(2, 3, dtype=torch.bfloat16), "b": torch.ones(())}, file, {"made": "here"})
    assert read_header(file) == {"a": TensorInfo("BF16", (2, 3)), "b": TensorInfo("F32", ())}
    assert read_metadata(file) == {"made": "here"}


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        (b"{", "header is not JSON"),
        (b"[" * 100_000, "header is not JSON"),
        ([], "header is not a JSON object"),
        ({"a": []}, "tensor 'a' is malformed"),
        ({"a": {**ENTRY, "dtype": "F31"}}, "tensor 'a' is malformed: KeyError('F31')"),
        ({"a": {**ENTRY, "shape": [float("inf")]}}, "tensor 'a' is malformed"),
        ({"a": {**ENTRY, "data_offsets": [0]}}, "tensor 'a' is malformed"),
        ({"a": {**ENTRY, "shape": [3]}}, "tensor 'a' of shape (3,) needs 12 bytes, got 8"),
        ({"a": {**ENTRY, "data_offsets": [4, 12]}}, "a gap or an overlap at byte 0"),
        ({"a": ENTRY, "b": ENTRY}, "a gap or an overlap at byte 8"),
        ({}, "bytes for the tensors of the header, got"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_header_that_does_not_describe_its_file_is_refused(tmp_path: Path, header: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=re.escape(reason)):
        read_header(written(tmp_path, header))


def test_a_file_that_is_cut_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, {"a": ENTRY})
    whole = file.read_bytes()
    for size in range(len(whole)):
        file.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"need|does not fit"):
            read_header(file)


def test_metadata_must_be_an_object(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="__metadata__ is not a JSON object"):
        read_metadata(written(tmp_path, {"__metadata__": [], "a": ENTRY}))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
)
ENTRIES = st.fixed_dictionaries(
    {
        "dtype": st.sampled_from(["F32", "U8"]) | JSON,
        "shape": st.lists(JSON) | JSON,
        "data_offsets": st.lists(JSON) | JSON,
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(header=st.dictionaries(st.text(max_size=3), ENTRIES | JSON, max_size=3) | JSON)
def test_any_header_is_read_or_refused(tmp_path: Path, header: Any) -> None:
    file = written(tmp_path, header)
    for read in (read_header, read_metadata):
        with suppress(ValueError):
            read(file)

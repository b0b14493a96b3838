"""Pictures that lie in archives: WebDataset tars, and data sets that Hugging Face's library saved."""

import io
import json
import logging
import pickle
import tarfile
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from training.data import ImageSource
from training.data.places import list_pictures, load_pictures
from training.errors import DataError
from training.sources import default_model_name

DRAW = torch.Generator()


def encoded(shade: int, side_px: int = 8, form: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (side_px, side_px), (shade, 0, 0)).save(buffer, form)
    return buffer.getvalue()


def write_shard(path: Path, members: dict[str, bytes]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as archive:
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def shades(source: ImageSource) -> list[int]:
    """The red of each picture."""
    return [int(level) for level in source.batch(torch.arange(len(source)), DRAW).levels[:, 0, 0, 0]]


@pytest.fixture
def captioned(tmp_path: Path) -> Path:
    """Two shards of three pictures; captions in .txt and in .json."""
    write_shard(
        tmp_path / "shards" / "0.tar",
        {
            "a/0.png": encoded(0), "a/0.txt": b"none\n", "a/0.json": b'{"caption": "not this"}',
            "a/1.json": b'{"caption": "forty"}', "a/1.png": encoded(40),
            "a/2.PNG": encoded(80), "a/2.txt": "\u00e9ighty".encode(),
        },
    )  # fmt: skip
    write_shard(
        tmp_path / "shards" / "1.tar",
        {f"{index}.{kind}": content for index in (3, 4, 5) for kind, content in (
            ("png", encoded(40 * index)), ("txt", b"number %d" % index), ("seg.png", encoded(255)), ("cls", b"1"))},
    )  # fmt: skip
    (tmp_path / "shards" / "README.md").write_text("about them")
    return tmp_path / "shards"


@pytest.mark.parametrize("memory_mib", [1, 1024])
def test_the_samples_of_all_shards_are_read_by_number_with_their_captions(captioned: Path, memory_mib: int) -> None:
    data = load_pictures(captioned, 256, memory_mib=memory_mib)
    assert data.in_memory == (memory_mib > 1)
    assert shades(data) == [0, 40, 80, 120, 160, 200]
    examples = data.batch(torch.tensor([4, 1, 2]), DRAW)
    assert examples.captions == ("number 4", "forty", "éighty")
    assert examples.labels is None
    assert data.shape == (3, 256, 256)
    assert data.place(1) == f"{captioned}/0.tar/a/1.png"
    assert shades(pickle.loads(pickle.dumps(data))) == shades(data), "batches are made in other processes"


def test_one_archive_is_a_data_set_and_names_the_model(captioned: Path) -> None:
    assert shades(load_pictures(captioned / "1.tar")) == [120, 160, 200]
    assert default_model_name(str(captioned / "1.tar")) == "1"


@pytest.mark.parametrize("kind", ["cls", "json"])
def test_classes_are_numbers_or_names(tmp_path: Path, kind: str) -> None:
    classes: list[int] | list[str] = [10, 9, 10] if kind == "cls" else ["dog", "cat", "dog"]
    members = {}
    for index, label in enumerate(classes):
        members[f"{index}.jpg"] = encoded(9, form="JPEG")
        members[f"{index}.{kind}"] = (f"{label}\n" if kind == "cls" else json.dumps({"label": label})).encode()
    data = load_pictures(write_shard(tmp_path / "some.tar", members))
    assert data.label_names == (("9", "10") if kind == "cls" else ("cat", "dog"))
    assert data.batch(torch.arange(3), DRAW).labels is not None
    assert data.batch(torch.arange(3), DRAW).labels.tolist() == [1, 0, 1]  # type: ignore[union-attr]


def test_pictures_alone_have_neither_captions_nor_classes(tmp_path: Path) -> None:
    data = load_pictures(write_shard(tmp_path / "some.tar", {"0.png": encoded(1), "1.png": encoded(2)}))
    assert (data.label_names, data.captioned) == ((), False)


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ({"0.txt": b"a caption"}, "no picture .* in"),
        ({"0.png": encoded(0), "0.txt": b"a", "1.png": encoded(1)}, r"need a caption for every .*some\.tar/1"),
        ({"0.png": encoded(0), "0.cls": b"1", "1.png": encoded(1)}, r"need a class for every .*some\.tar/1"),
        ({"0.png": encoded(0), "0.cls": b"one"}, r"need a whole number in .*some\.tar/0\.cls, got 'one'"),
        ({"0.png": encoded(0), "0.json": b"{"}, r"can't read .*some\.tar/0\.json"),
        ({"0.png": encoded(0), "0.json": b'{"label": [1]}'}, r"as the label of .*some\.tar/0\.json, got \[1\]"),
        ({"0.png": encoded(0), "0.txt": b"\xff"}, r"can't read .*some\.tar/0\.txt"),
        ({"0.png": encoded(0), "1.png": encoded(0, 9)}, r"0\.png is 8x8, 1\.png is 9x9"),
    ],
)  # fmt: skip
def test_samples_that_cannot_be_used_are_refused_by_name(
    tmp_path: Path, members: dict[str, bytes], reason: str
) -> None:
    with pytest.raises(DataError, match=reason):
        load_pictures(write_shard(tmp_path / "some.tar", members))


def test_a_damaged_archive_is_refused_by_name_and_a_compressed_one_too(tmp_path: Path, captioned: Path) -> None:
    whole = (captioned / "0.tar").read_bytes()
    for content in (b"", b"no archive at all", whole[:700]):
        (tmp_path / "bad.tar").write_bytes(content)
        with pytest.raises(DataError, match=r"can't read .*bad\.tar"):
            load_pictures(tmp_path / "bad.tar")
    with tarfile.open(tmp_path / "bad.tar", "w:gz") as archive:
        archive.add(captioned / "0.tar", "0.png")
    with pytest.raises(DataError, match=r"can't read .*bad\.tar"):
        load_pictures(tmp_path / "bad.tar")


def test_broken_pictures_of_an_archive_are_named_and_left_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {"0.png": encoded(1), "1.png": b"not a picture", "2.png": encoded(3), "3.txt": b"of no picture"}
    with caplog.at_level(logging.WARNING):
        data = load_pictures(write_shard(tmp_path / "some.tar", members), broken_share=0.5)
    assert shades(data) == [1, 3]
    assert "left out" in caplog.text
    assert "some.tar/1.png: not a picture" in caplog.text
    assert "some.tar/3: no picture" in caplog.text


def test_an_archive_that_is_cut_short_under_way_is_named(captioned: Path) -> None:
    data = load_pictures(captioned, 256, memory_mib=1)
    with (captioned / "1.tar").open("r+b") as file:
        file.truncate(520)
    examples = data.batch(torch.tensor([0, 3]), DRAW)
    assert examples.levels[:, 0, 0, 0].tolist() == [0, 0], "the next one that can be read stands in"
    assert f"{captioned}/1.tar/3.png: the archive is shorter than it was" in examples.unreadable


def test_the_fingerprint_changes_with_an_archive(captioned: Path) -> None:
    before = load_pictures(captioned, 256, memory_mib=1).fingerprint()
    assert load_pictures(captioned, 256, memory_mib=1).fingerprint() == before
    write_shard(captioned / "2.tar", {"6.png": encoded(240), "6.txt": b"six"})
    assert load_pictures(captioned, 256, memory_mib=1).fingerprint() != before


def test_a_folder_of_pictures_may_hold_an_archive_too(tmp_path: Path) -> None:
    write_shard(tmp_path / "download.tar", {"0.png": encoded(1)})
    (tmp_path / "0.png").write_bytes(encoded(7))
    assert shades(load_pictures(tmp_path)) == [7]


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """Six rows with captions and two classes, in two files, as the library writes them."""
    datasets = pytest.importorskip("datasets")
    rows = {
        "image": [{"bytes": encoded(40 * index), "path": None} for index in range(6)],
        "label": [index % 2 for index in range(6)],
        "text": [f"number {index}" for index in range(6)],
    }
    features = datasets.Features(
        {
            "image": datasets.Image(),
            "label": datasets.ClassLabel(names=["even", "odd"]),
            "text": datasets.Value("string"),
        }
    )
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "saved"), num_shards=2)
    return tmp_path / "saved"


def edited(saved: Path, to: Path, edit: Any) -> Path:
    from datasets import load_from_disk

    edit(load_from_disk(str(saved))).save_to_disk(str(to))
    return to


@pytest.mark.parametrize("memory_mib", [1, 1024])
def test_the_rows_of_a_saved_data_set_are_read_by_number(saved: Path, memory_mib: int) -> None:
    data = load_pictures(saved, 256, memory_mib=memory_mib)
    assert data.in_memory == (memory_mib > 1)
    assert shades(data) == [0, 40, 80, 120, 160, 200]
    examples = data.batch(torch.tensor([4, 1]), DRAW)
    assert (examples.captions, examples.labels) == (("number 4", "number 1"), None)
    assert data.place(4) == f"{saved}, row 4"
    assert shades(pickle.loads(pickle.dumps(data))) == shades(data), "batches are made in other processes"


def test_without_captions_a_saved_data_set_has_its_classes(saved: Path, tmp_path: Path) -> None:
    data = load_pictures(edited(saved, tmp_path / "labeled", lambda rows: rows.remove_columns("text")))
    assert data.label_names == ("even", "odd")
    labels = data.batch(torch.tensor([0, 1, 5]), DRAW).labels
    assert labels is not None
    assert labels.tolist() == [0, 1, 1]


def test_of_several_splits_the_one_to_train_on_is_taken(saved: Path, tmp_path: Path) -> None:
    from datasets import DatasetDict

    both = edited(
        saved, tmp_path / "both", lambda rows: DatasetDict({"test": rows.select([5]), "train": rows.select([2, 3])})
    )
    assert shades(load_pictures(both)) == [80, 120]
    assert shades(load_pictures(both / "test")) == [200]
    odd = edited(saved, tmp_path / "odd", lambda rows: DatasetDict({"b": rows, "a": rows}))
    with pytest.raises(DataError, match=r"one of the splits of .*odd as --data: a, b"):
        list_pictures(odd)


def test_a_saved_data_set_that_cannot_be_used_is_refused_by_name(saved: Path, tmp_path: Path) -> None:
    for name, edit, reason in (
        ("wordless", lambda rows: rows.remove_columns("image"), "need rows with one column of pictures in .*wordless"),
        ("unlabeled", lambda rows: rows.remove_columns("text").map(lambda row: {"label": -1}), "got none for row 0"),
    ):
        with pytest.raises(DataError, match=reason):
            load_pictures(edited(saved, tmp_path / name, edit))
    (saved / "state.json").write_text("{")
    with pytest.raises(DataError, match=r"can't read .*saved"):
        load_pictures(saved)


def test_broken_rows_are_named_and_left_out(saved: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    from datasets import Image as Pictures

    def broken(rows: Any) -> Any:
        rows = rows.cast_column("image", Pictures(decode=False))
        return rows.map(
            lambda row, index: {"image": {"bytes": b"not a picture", "path": None} if index == 2 else row["image"]},
            with_indices=True,
        ).cast_column("image", Pictures())

    folder = edited(saved, tmp_path / "broken", broken)
    with pytest.raises(DataError, match=r"1 of 6 files, more than --broken-share 0.01: .*broken, row 2: not a picture"):
        load_pictures(folder)
    assert shades(load_pictures(folder, broken_share=0.2)) == [0, 40, 120, 160, 200]
    assert "broken, row 2" in caplog.text


def test_the_fingerprint_changes_with_a_saved_data_set(saved: Path, tmp_path: Path) -> None:
    before = load_pictures(saved, 256, memory_mib=1).fingerprint()
    assert load_pictures(saved, 256, memory_mib=1).fingerprint() == before
    fewer = edited(saved, tmp_path / "fewer", lambda rows: rows.select(range(5)))
    assert load_pictures(fewer, 256, memory_mib=1).fingerprint() != before

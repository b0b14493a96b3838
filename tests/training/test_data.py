"""Training images: ranges, splits, and folders of one's own pictures."""

import csv
import json
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.training.tiny import quick, tiny_denoiser
from training.data import ImageData, split
from training.data.arrays import load_arrays
from training.data.digits import load_digits
from training.data.image_folder import list_folder
from training.data.listing import ListedPictures
from training.data.picture_files import UnreadablePicture, decode, header
from training.data.places import load_pictures
from training.data.textures import TextureData, load_textures
from training.data.workers import batches
from training.errors import DataError
from training.loop import Budget, Trainer
from worker.diffusion import NoiseSchedule

DRAW = torch.Generator()


def in_memory(folder: Path, size_px: int | None = None) -> ImageData:
    data = load_pictures(folder, size_px)
    assert isinstance(data, ImageData)
    return data


def test_the_digits_are_all_there_and_span_the_range() -> None:
    digits = load_digits()
    images = digits.images()
    assert images.shape == (1797, 1, 8, 8)
    assert (float(images.min()), float(images.max())) == (-1.0, 1.0)
    assert digits.label_names == tuple("0123456789")
    assert set(digits.labels.tolist()) == set(range(10))


def test_a_split_is_disjoint_complete_and_repeatable() -> None:
    digits = load_digits()
    train, held_out = split(digits, 1 / 6, seed=0)
    assert (len(train), len(held_out)) == (1797 - 300, 300)
    assert torch.equal(held_out.indices, split(digits, 1 / 6, seed=0)[1].indices)
    assert not torch.equal(held_out.indices, split(digits, 1 / 6, seed=1)[1].indices)
    assert sorted([*train.indices.tolist(), *held_out.indices.tolist()]) == list(range(1797))


def test_a_split_with_an_empty_side_is_refused() -> None:
    with pytest.raises(DataError, match="both sides"):
        split(load_digits(), 0.0, seed=0)


def _save(path: Path, colour: int | tuple[int, int, int], size: tuple[int, int] = (8, 8)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L" if isinstance(colour, int) else "RGB", size, colour).save(path)


def test_subfolders_are_classes(tmp_path: Path) -> None:
    _save(tmp_path / "cat" / "b.png", 255)
    _save(tmp_path / "cat" / "a.png", 0)
    _save(tmp_path / "ant" / "c.png", 51)
    data = in_memory(tmp_path)
    assert data.label_names == ("ant", "cat")
    assert data.labels.tolist() == [0, 1, 1]
    assert data.images()[:, 0, 0, 0].tolist() == pytest.approx([-0.6, -1.0, 1.0])


def test_loose_images_have_no_classes_and_one_in_colour_makes_all_rgb(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", 0)
    _save(tmp_path / "b.png", (255, 0, 0))
    data = in_memory(tmp_path)
    assert data.shape == (3, 8, 8)
    assert data.label_names == ()
    assert data.images()[1, :, 0, 0].tolist() == [1.0, -1.0, -1.0]


def test_pixels_keep_their_place(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 4))
    picture.putpixel((5, 1), (10, 20, 30))  # x = 5, y = 1
    picture.save(tmp_path / "a.png")
    data = in_memory(tmp_path)
    assert data.levels.shape == (1, 3, 4, 6)
    assert data.levels[0, :, 1, 5].tolist() == [10, 20, 30]
    assert int(data.levels.sum()) == 60


def test_a_size_makes_squares_of_all(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", 100, (30, 20))
    _save(tmp_path / "b.png", 100, (9, 50))
    data = in_memory(tmp_path, size_px=16)
    assert data.levels.shape == (2, 1, 16, 16)
    assert set(data.levels.flatten().tolist()) == {100}


def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        load_pictures(tmp_path / "missing")
    with pytest.raises(DataError, match="no image"):
        load_pictures(tmp_path)
    _save(tmp_path / "mixed" / "a.png", 0)
    _save(tmp_path / "mixed" / "b.png", 0, (9, 8))
    with pytest.raises(DataError, match=r"a\.png is 8x8, b\.png is 9x8"):
        load_pictures(tmp_path / "mixed")
    (tmp_path / "classes" / "empty").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no image.*empty"):
        load_pictures(tmp_path / "classes")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"x\.png"):
        load_pictures(tmp_path / "broken")
    _save(tmp_path / "both" / "a.png", 0)
    _save(tmp_path / "both" / "class" / "b.png", 0)
    with pytest.raises(DataError, match="got both"):
        load_pictures(tmp_path / "both")


def captioned_folder(root: Path, count: int = 6) -> Path:
    for index in range(count):
        _save(root / f"{index}.png", (40 * index, 0, 0))
    return root


@pytest.mark.parametrize("form", ["jsonl", "csv", "txt"])
def test_captions_stand_in_a_metadata_file_or_beside_the_pictures(tmp_path: Path, form: str) -> None:
    folder = captioned_folder(tmp_path)
    texts = {f"{index}.png": f'number {index}, "quoted"' for index in range(6)}
    if form == "jsonl":
        lines = [json.dumps({"file_name": name, "text": text}) for name, text in texts.items()]
        (folder / "metadata.jsonl").write_text("\n".join(lines))
    elif form == "csv":
        with (folder / "metadata.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["file_name", "text"])
            rows.writerows(texts.items())
    else:
        for name, text in texts.items():
            (folder / name).with_suffix(".txt").write_text(text + "\n")
    data = load_pictures(folder)
    assert data.captioned
    assert data.label_names == ()
    examples = data.batch(torch.tensor([4, 1]), DRAW)
    assert examples.captions == ('number 4, "quoted"', 'number 1, "quoted"')
    assert examples.labels is None
    assert examples.levels[:, 0, 0, 0].tolist() == [160, 40]
    assert data.place(4) == str(folder / "4.png")


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metadata.jsonl", '{"file_name": "0.png"}', "need file_name and text or caption in row 1"),
        ("metadata.jsonl", '{"file_name": "9.png", "text": ""}', "names '9.png', which is not in the folder"),
        ("metadata.jsonl", '{"file_name": "../0.png", "text": ""}', "not in the folder"),
        ("metadata.jsonl", "not json", "can't read"),
        ("metadata.jsonl", "[1, 2]", "need file_name"),
        ("metadata.csv", "file_name,text\n", "lists no picture"),
        ("0.txt", "only one has a caption", "got none for"),
    ],
)
def test_captions_that_cannot_be_used_are_refused_by_row(tmp_path: Path, name: str, text: str, reason: str) -> None:
    folder = captioned_folder(tmp_path / "pictures")
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=reason):
        load_pictures(folder)


def test_captions_may_have_line_breaks_of_any_kind(tmp_path: Path) -> None:
    texts = ["two\nlines", "a separator\u2028and a\x0bline tab", "three", "a, b", "", "six"]
    for form in ("jsonl", "csv"):
        folder = captioned_folder(tmp_path / form)
        rows = [{"file_name": f"{index}.png", "text": text} for index, text in enumerate(texts)]
        if form == "jsonl":
            lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)
            (folder / "metadata.jsonl").write_text(lines, encoding="utf-8")
        else:
            with (folder / "metadata.csv").open("w", newline="", encoding="utf-8-sig") as file:
                writer = csv.DictWriter(file, ["file_name", "text"])
                writer.writeheader()
                writer.writerows(rows)
        assert list(load_pictures(folder).caption_corpus()) == texts


def test_captions_that_are_all_empty_are_refused(tmp_path: Path) -> None:
    folder = captioned_folder(tmp_path)
    for index in range(6):
        (folder / f"{index}.txt").write_text(" \n")
    with pytest.raises(DataError, match=r"need captions with words .* got 6 empty ones"):
        load_pictures(folder)


@pytest.mark.parametrize("memory_mib", [1, 1024])
def test_a_folder_gives_the_same_pixels_from_memory_and_from_the_disk(tmp_path: Path, memory_mib: int) -> None:
    for index in range(8):
        _save(tmp_path / "a" / f"{index}.png", (index, 2 * index, 3 * index), (300, 200))
    data = load_pictures(tmp_path, 256, memory_mib=memory_mib)
    assert data.in_memory == (memory_mib > 1)
    examples = data.batch(torch.arange(8), DRAW)
    assert examples.levels.shape == (8, 3, 256, 256)
    assert examples.levels[:, :, 9, 9].tolist() == [[index, 2 * index, 3 * index] for index in range(8)]
    assert examples.labels is not None
    assert data.label_names == ("a",)


def test_odd_pictures_are_shown_as_people_see_them(tmp_path: Path) -> None:
    """Alpha on white, a palette's colours, sixteen bits, the first frame of an animation, upright, a single pixel."""
    Image.new("RGBA", (4, 4), (255, 0, 0, 0)).save(tmp_path / "alpha.png")
    palette = Image.new("P", (4, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "palette.png")
    Image.new("I;16", (4, 4), 0x80FF).save(tmp_path / "sixteen.png")
    frames = [Image.new("RGB", (4, 4), shade) for shade in ((0, 0, 255), (255, 0, 0))]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    lying = Image.new("RGB", (8, 4))
    lying.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: what is at the left bottom is shown at the left top
    lying.save(tmp_path / "turned.png", exif=exif)
    Image.new("RGB", (1, 1), (5, 6, 7)).save(tmp_path / "single.png")

    def corner(name: str, size_px: int | None = None) -> list[int]:
        return [int(level) for level in decode(tmp_path / name, size_px, 3)[:, 0, 0]]

    assert corner("alpha.png") == [255, 255, 255]
    assert corner("palette.png") == [9, 8, 7]
    assert corner("sixteen.png") == [0x80] * 3
    assert corner("moving.gif") == [0, 0, 255]
    assert header(tmp_path / "turned.png") == ((4, 8), False)
    assert decode(tmp_path / "turned.png", None, 3).shape == (3, 8, 4)
    assert int(decode(tmp_path / "turned.png", None, 3)[0, 0, 3]) == 255
    assert corner("single.png", 8) == [5, 6, 7]


def test_a_picture_too_large_to_be_one_is_refused_by_name(tmp_path: Path) -> None:
    Image.new("1", (20_000, 20_000)).save(tmp_path / "huge.png")
    with pytest.raises(UnreadablePicture, match=r"huge\.png.*decompression bomb"):
        decode(tmp_path / "huge.png", 8, 1)


def test_broken_files_are_named_and_left_out_up_to_a_share(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = captioned_folder(tmp_path)
    (folder / "3.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"1 of 6 files.*3\.png"):
        load_pictures(folder)
    data = load_pictures(folder, broken_share=0.2)
    assert len(data) == 5
    assert "left out" in caplog.text
    assert "3.png" in caplog.text


def test_a_file_that_disappears_under_way_is_stood_in_for_and_named(tmp_path: Path) -> None:
    for index in range(4):
        _save(tmp_path / f"{index}.png", (index, 0, 0), (800, 800))
    data = load_pictures(tmp_path, memory_mib=1)
    assert not data.in_memory
    (tmp_path / "1.png").unlink()
    examples = data.batch(torch.tensor([0, 1]), DRAW)
    assert examples.levels[:, 0, 0, 0].tolist() == [0, 2]
    assert len(examples.unreadable) == 1
    assert "1.png: No such file" in examples.unreadable[0]


def test_a_run_ends_when_too_many_files_have_gone(tmp_path: Path) -> None:
    for index in range(4):
        _save(tmp_path / f"{index}.png", index, (16, 16))
    listing = list_folder(tmp_path)
    data = ListedPictures(listing, 8, (1, 8, 8), broken_share=0.0)
    (tmp_path / "1.png").unlink()
    trainer = Trainer(tiny_denoiser(num_classes=0), data, NoiseSchedule.linear(), quick(batch=16))
    with pytest.raises(DataError, match=r"1 of 4 files, more than --broken-share 0.01.*1\.png"):
        trainer.run(Budget(steps=2))


def test_the_fingerprint_changes_with_the_data(tmp_path: Path) -> None:
    folder = captioned_folder(tmp_path)
    before = load_pictures(folder).fingerprint()
    assert load_pictures(folder).fingerprint() == before
    _save(folder / "5.png", (0, 1, 0))
    assert load_pictures(folder).fingerprint() != before


def test_batches_made_ahead_by_other_processes_are_the_same() -> None:
    make = partial(torch.full, (2,))
    assert [batch.tolist() for batch in islice(batches(make, iter(range(3, 8)), 2), 4)] == [
        [step, step] for step in range(3, 7)
    ]


@pytest.mark.parametrize("order", ["NHWC", "NCHW", "NHW"])
def test_arrays_hold_images_in_any_order_and_labels_of_any_kind(tmp_path: Path, order: str) -> None:
    draw = np.random.default_rng(0)
    shape = {"NHWC": (5, 8, 6, 3), "NCHW": (5, 3, 8, 6), "NHW": (5, 8, 6)}[order]
    images = draw.integers(0, 256, shape, dtype=np.uint8)
    np.savez(tmp_path / "some.npz", images=images, labels=np.array(["b", "a", "b", "b", "a"]))
    np.save(tmp_path / "some.npy", images)
    data = load_arrays(tmp_path / "some.npz")
    assert data.shape == ((1, 8, 6) if order == "NHW" else (3, 8, 6))
    assert data.label_names == ("a", "b")
    assert data.labels.tolist() == [1, 0, 1, 1, 0]
    assert torch.equal(load_arrays(tmp_path / "some.npy").levels, data.levels)
    first = data.levels[0].permute(1, 2, 0) if order == "NHWC" else data.levels[0]
    assert torch.equal(first.squeeze(), torch.from_numpy(images[0]))


def test_arrays_that_cannot_be_used_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "bad.npz"
    for arrays, reason in (
        ({"pictures": np.zeros((2, 4, 4), np.uint8)}, "need an array named images"),
        ({"images": np.zeros((2, 4, 4))}, "need uint8 images .* float64"),
        ({"images": np.zeros((2, 4, 4, 4), np.uint8)}, "1 or 3 channels"),
        ({"images": np.zeros((2, 4, 4), np.uint8), "labels": np.zeros(3, np.int64)}, "a label for each of 2"),
    ):
        np.savez(file, **arrays)
        with pytest.raises(DataError, match=reason):
            load_arrays(file)
    np.save(tmp_path / "pickled.npy", np.array([{}]), allow_pickle=True)
    for name in ("pickled.npy", "missing.npy"):
        with pytest.raises(DataError, match=name):
            load_arrays(tmp_path / name)


def test_textures_are_crops_of_named_photographs_and_the_held_out_fifth_is_apart() -> None:
    train, held_out = load_textures(32).divided()
    examples = train.batch(torch.arange(16), torch.Generator().manual_seed(0))
    assert examples.levels.shape == (16, 3, 32, 32)
    assert examples.labels is not None
    assert examples.labels.tolist() == [*range(8), *range(8)]
    again = train.batch(torch.arange(16), torch.Generator().manual_seed(0))
    assert torch.equal(examples.levels, again.levels)
    assert not torch.equal(examples.levels[:8], examples.levels[8:])
    marked = torch.zeros(3, 64, 100, dtype=torch.uint8)
    marked[:, :, 80:] = 255
    sides = TextureData((marked,), ("marked",), 16).divided()
    draw = torch.Generator().manual_seed(1)
    assert int(sides[0].batch(torch.arange(64), draw).levels.max()) == 0
    assert int(sides[1].batch(torch.arange(64), draw).levels.min()) == 255
    assert (len(train), len(held_out)) == (12800, 3200)

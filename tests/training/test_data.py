"""Training images: ranges, splits, and folders of one's own pictures."""

from pathlib import Path

import pytest
import torch
from PIL import Image

from training.data import split
from training.data.digits import load_digits
from training.data.image_folder import load_image_folder
from training.errors import DataError


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
    data = load_image_folder(tmp_path)
    assert data.label_names == ("ant", "cat")
    assert data.labels.tolist() == [0, 1, 1]
    assert data.images()[:, 0, 0, 0].tolist() == pytest.approx([-0.6, -1.0, 1.0])


def test_loose_images_have_no_classes_and_one_in_colour_makes_all_rgb(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", 0)
    _save(tmp_path / "b.png", (255, 0, 0))
    data = load_image_folder(tmp_path)
    assert data.shape == (3, 8, 8)
    assert data.label_names == ()
    assert data.images()[1, :, 0, 0].tolist() == [1.0, -1.0, -1.0]


def test_pixels_keep_their_place(tmp_path: Path) -> None:
    picture = Image.new("RGB", (6, 4))
    picture.putpixel((5, 1), (10, 20, 30))  # x = 5, y = 1
    picture.save(tmp_path / "a.png")
    data = load_image_folder(tmp_path)
    assert data.levels.shape == (1, 3, 4, 6)
    assert data.levels[0, :, 1, 5].tolist() == [10, 20, 30]
    assert int(data.levels.sum()) == 60


def test_a_size_makes_squares_of_all(tmp_path: Path) -> None:
    _save(tmp_path / "a.png", 100, (30, 20))
    _save(tmp_path / "b.png", 100, (9, 50))
    data = load_image_folder(tmp_path, size_px=16)
    assert data.levels.shape == (2, 1, 16, 16)
    assert set(data.levels.flatten().tolist()) == {100}


def test_a_folder_that_cannot_be_used_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        load_image_folder(tmp_path / "missing")
    with pytest.raises(DataError, match="no image"):
        load_image_folder(tmp_path)
    _save(tmp_path / "mixed" / "a.png", 0)
    _save(tmp_path / "mixed" / "b.png", 0, (9, 8))
    with pytest.raises(DataError, match=r"a\.png is 8x8, b\.png is 9x8"):
        load_image_folder(tmp_path / "mixed")
    (tmp_path / "classes" / "empty").mkdir(parents=True)
    with pytest.raises(DataError, match=r"no image.*empty"):
        load_image_folder(tmp_path / "classes")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "x.png").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"x\.png"):
        load_image_folder(tmp_path / "broken")
    _save(tmp_path / "both" / "a.png", 0)
    _save(tmp_path / "both" / "class" / "b.png", 0)
    with pytest.raises(DataError, match="got both"):
        load_image_folder(tmp_path / "both")

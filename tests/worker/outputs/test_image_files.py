"""Files hold the pixels, bit for bit."""

import hashlib
import io

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from worker.contract import ImageFormat
from worker.outputs.image_files import encode

SHAPES = st.tuples(st.integers(1, 9), st.integers(1, 9), st.sampled_from([1, 3, 4]))


@settings(deadline=None, max_examples=40)
@given(pixels=hnp.arrays(np.uint8, SHAPES), image_format=st.sampled_from(ImageFormat))
def test_decoding_gives_back_what_was_encoded(pixels: np.ndarray, image_format: ImageFormat) -> None:
    encoded = encode(pixels, image_format)
    mode = {1: "L", 3: "RGB", 4: "RGBA"}[pixels.shape[2]]
    with Image.open(io.BytesIO(encoded.data)) as image:
        decoded = np.asarray(image.convert(mode)).reshape(pixels.shape)
    assert np.array_equal(decoded, pixels)
    assert (encoded.height, encoded.width) == pixels.shape[:2]
    assert encode(pixels.copy(), image_format) == encoded, "the same pixels gave another file"


def test_the_hash_is_of_the_pixels_in_c_order_whatever_the_memory_layout_and_format() -> None:
    pixels = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    expected = hashlib.sha256(bytes(range(60))).hexdigest()
    for layout in (pixels, np.asfortranarray(pixels), pixels.copy()[::1]):
        for image_format in ImageFormat:
            assert encode(layout, image_format).sha256 == expected


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 2), np.uint8), np.zeros((0, 4, 3), np.uint8), np.zeros((4, 4, 3))],
)
def test_what_is_no_image_is_refused_with_its_shape(pixels: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"need uint8 \[H, W, C\].*got"):
        encode(pixels, ImageFormat.PNG)

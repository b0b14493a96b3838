"""An animation shows what it was given, in order, and rests at the image."""

import io

import numpy as np
import pytest
from PIL import Image, ImageSequence

from worker.outputs.animation import MOVING_MS, REST_MS, SHOWN_PX, animate


def opened(data: bytes) -> tuple[list[Image.Image], list[int]]:
    with Image.open(io.BytesIO(data)) as image:
        frames, durations = [], []
        for frame in ImageSequence.Iterator(image):
            frame.load()
            durations.append(int(frame.info["duration"]))
            frames.append(frame.convert("RGB"))
        return frames, durations


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_frames_come_in_order_and_the_image_is_the_last(channels: int) -> None:
    grey = [np.full((8, 8, channels), level, np.uint8) for level in (10, 60, 120, 250)]
    for pixels in grey:
        pixels[..., 3:] = 255
    frames, durations = opened(animate(grey[:-1], grey[-1]))
    assert [frame.getpixel((3, 3)) for frame in frames] == [(level,) * 3 for level in (10, 60, 120, 250)]
    assert durations == [MOVING_MS // 4] * 3 + [REST_MS]


def test_small_frames_of_a_large_image_are_as_large_as_it_is_shown() -> None:
    frames, _ = opened(animate([np.zeros((16, 8, 3), np.uint8)], np.full((1024, 512, 3), 200, np.uint8)))
    assert {frame.size for frame in frames} == {(SHOWN_PX // 2, SHOWN_PX)}


def test_an_image_alone_is_an_animation_of_one_frame() -> None:
    frames, _ = opened(animate([], np.full((8, 8, 3), 200, np.uint8)))
    assert len(frames) == 1

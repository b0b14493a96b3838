"""Emoji: what is drawn is what the caption says, and what is held out is never drawn."""

import random

import numpy as np
import pytest
import torch

from training.data.emoji import ALWAYS_HELD_OUT, BACKGROUNDS, EmojiData, load_emoji
from training.data.emoji_captions import Concept, coloured_name, plain_caption, varied_caption
from training.data.emoji_colours import COLOURS, distance_deg, dominant_hue, recoloured, to_hsv, to_rgb


@pytest.fixture(scope="module")
def emoji() -> EmojiData:
    return load_emoji(32)


def test_hue_saturation_and_value_are_the_same_colours() -> None:
    rgb = np.random.default_rng(0).random((500, 3))
    np.testing.assert_allclose(to_rgb(*to_hsv(rgb)), rgb, atol=1e-9)
    assert distance_deg(np.array(350.0), 10) == 20


def test_a_drawing_takes_the_hue_it_is_given_and_keeps_its_other_colours() -> None:
    tile = np.zeros((16, 16, 4), np.uint8)
    tile[..., 3] = 255
    tile[:12] = (220, 30, 30, 255)
    tile[12:] = (30, 200, 30, 255)
    found = dominant_hue(tile)
    assert found is not None
    assert found[0] == pytest.approx(0, abs=1) or found[0] == pytest.approx(360, abs=1)
    assert found[1] == pytest.approx(0.75, abs=0.05)
    blue = recoloured(tile, found[0], COLOURS["blue"])
    turned = dominant_hue(blue)
    assert turned is not None
    assert turned[0] == pytest.approx(COLOURS["blue"], abs=2)
    assert (blue[12:] == tile[12:]).all()
    assert dominant_hue(np.full((8, 8, 4), 128, np.uint8)) is None


def test_a_colour_takes_the_place_of_a_colour_in_the_name() -> None:
    assert coloured_name("rocket", "purple") == "purple rocket"
    assert coloured_name("red apple", "blue") == "blue apple"
    apple = Concept("red apple", ("fruit", "red"))
    assert plain_caption(apple, "blue", "black") == "blue apple on a black background"
    words = random.Random(0)
    captions = {varied_caption(apple, "blue", None, words) for _ in range(200)}
    assert {"blue apple", "a blue apple", "blue apple, fruit", "blue fruit"} == captions


def test_the_pairs_that_are_held_out_are_in_no_caption_of_training(emoji: EmojiData) -> None:
    train, held_out = emoji.divided()
    never = {drawing.caption() for drawing in held_out.drawings}
    assert never >= ALWAYS_HELD_OUT
    assert never.isdisjoint(drawing.caption() for drawing in train.drawings)
    assert 0.1 < len(held_out) / sum(drawing.colour is not None for drawing in emoji.drawings) < 0.25
    assert all(drawing.colour is not None for drawing in held_out.drawings)
    assert sum(drawing.colour is None for drawing in train.drawings) == 149


def test_recoloured_drawings_have_the_colour_that_their_caption_names(emoji: EmojiData) -> None:
    rows = [index for index, drawing in enumerate(emoji.drawings) if drawing.colour is not None]
    levels = emoji.pictures(torch.tensor(rows), [None] * len(rows)).permute(0, 2, 3, 1)
    alpha = emoji.rgba[rows, 3:].permute(0, 2, 3, 1)
    right = 0
    for row, pixels in zip(rows, torch.cat([levels, alpha], -1).numpy(), strict=True):
        found = dominant_hue(pixels)
        colour = emoji.drawings[row].colour
        assert colour is not None
        right += found is not None and bool(distance_deg(np.asarray(found[0]), COLOURS[colour]) < 20)
    assert right / len(rows) > 0.95


def test_a_batch_is_a_function_of_its_draw_and_shows_its_background(emoji: EmojiData) -> None:
    rows = torch.arange(200)
    first = emoji.batch(rows, torch.Generator().manual_seed(1))
    again = emoji.batch(rows, torch.Generator().manual_seed(1))
    assert first.captions == again.captions
    assert torch.equal(first.levels, again.levels)
    assert first.captions != emoji.batch(rows, torch.Generator().manual_seed(2)).captions
    assert first.captions is not None
    clear = emoji.rgba[rows, 3, 0, 0] == 0
    seen = set()
    for caption, corner in zip(
        np.array(first.captions)[clear.numpy()], first.levels[clear, :, 0, 0].tolist(), strict=True
    ):
        background = caption.split(" on a ")[1].removesuffix(" background") if " on a " in caption else None
        assert tuple(corner) == BACKGROUNDS[background]
        seen.add(background)
    assert seen == set(BACKGROUNDS)

"""Emoji: 771 drawings with names and keywords, recoloured and put on backgrounds, with a caption that says so.

The atlas comes along (`emoji_atlas/`, with its NOTICE). A batch is made when it is asked for: an index is a drawing in
a colour; its background and the wording of its caption are drawn. A share of the (drawing, colour) pairs is never
trained on, so that what the model makes of "blue apple" is its own.
"""

import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from training.data.emoji_captions import Concept, coloured_name, plain_caption, varied_caption
from training.data.emoji_colours import COLOURS, DOMINANT_SHARE, NEAR_DEG, distance_deg, dominant_hue, recoloured
from training.data.examples import Examples
from training.errors import DataError

ATLAS = Path(__file__).parent / "emoji_atlas"
HELD_OUT_SHARE = 0.15
ALWAYS_HELD_OUT = frozenset({"blue apple", "purple rocket", "green cat face", "blue pizza", "green octopus"})
BACKGROUNDS: dict[str | None, tuple[int, int, int]] = {
    None: (255, 255, 255),
    "red": (232, 90, 90),
    "orange": (255, 178, 102),
    "yellow": (255, 232, 120),
    "green": (140, 210, 140),
    "blue": (130, 175, 240),
    "purple": (180, 150, 225),
    "pink": (250, 175, 210),
    "gray": (150, 150, 150),
    "black": (24, 24, 28),
}
PLAIN_BACKGROUND_SHARE = 0.5
MAX_LEVEL = 255


@dataclass(frozen=True, slots=True)
class Drawing:
    """One concept in one colour.

    Attributes:
        concept: which one.
        colour: the name of the colour it was given, None for its own.
        starter: whether the concept is one of the 149 to begin with.
    """

    concept: Concept
    colour: str | None
    starter: bool

    @property
    def held_out(self) -> bool:
        """Whether the pair is never trained on. By its words alone: a green apple turned blue is a blue apple too."""
        if self.colour is None:
            return False
        digest = hashlib.sha256(self.caption().encode()).digest()
        return self.caption() in ALWAYS_HELD_OUT or int.from_bytes(digest[:4], "big") < HELD_OUT_SHARE * 2**32

    def caption(self, background: str | None = None) -> str:
        return plain_caption(self.concept, self.colour, background)


@dataclass(frozen=True, eq=False)
class EmojiData:
    """Drawings in colours. An `ImageSource`.

    Attributes:
        drawings: what each index is.
        rgba: [N, 4, H, W] uint8, colours multiplied by alpha.
    """

    drawings: tuple[Drawing, ...]
    rgba: Tensor

    def __len__(self) -> int:
        return len(self.drawings)

    @property
    def name(self) -> str:
        return "emoji (Noto)"

    @property
    def shape(self) -> tuple[int, int, int]:
        height, width = self.rgba.shape[2:]
        return 3, height, width

    @property
    def max_level(self) -> int:
        return MAX_LEVEL

    @property
    def label_names(self) -> tuple[str, ...]:
        return ()

    @property
    def captioned(self) -> bool:
        return True

    @property
    def in_memory(self) -> bool:
        return True

    def batch(self, indices: Tensor, draw: torch.Generator) -> Examples:
        words = random.Random(int(torch.randint(2**62, (), generator=draw)))
        names = list(BACKGROUNDS)
        backgrounds = [
            None if words.random() < PLAIN_BACKGROUND_SHARE else words.choice(names[1:]) for _ in range(len(indices))
        ]
        captions = tuple(
            varied_caption(self.drawings[index].concept, self.drawings[index].colour, background, words)
            for index, background in zip(indices.tolist(), backgrounds, strict=True)
        )
        return Examples(levels=self.pictures(indices, backgrounds), captions=captions)

    def pictures(self, indices: Tensor, backgrounds: Iterable[str | None]) -> Tensor:
        """[n, 3, H, W] uint8: each drawing on the background of that name."""
        rgba = self.rgba[indices].float()
        flat = torch.tensor([BACKGROUNDS[name] for name in backgrounds], dtype=torch.float32)[:, :, None, None]
        return (rgba[:, :3] + flat * (1 - rgba[:, 3:] / MAX_LEVEL)).round().clamp(0, MAX_LEVEL).to(torch.uint8)

    def chosen(self, indices: Iterable[int]) -> "EmojiData":
        """These drawings alone."""
        rows = list(indices)
        return EmojiData(tuple(self.drawings[row] for row in rows), self.rgba[rows])

    def divided(self) -> tuple["EmojiData", "EmojiData"]:
        """(what is trained on, the pairs that never are)."""
        flags = [drawing.held_out for drawing in self.drawings]
        return (
            self.chosen(index for index, held_out in enumerate(flags) if not held_out),
            self.chosen(index for index, held_out in enumerate(flags) if held_out),
        )

    def place(self, index: int) -> str:
        return self.drawings[index].caption()

    def caption_corpus(self) -> Iterable[str]:
        words = random.Random(0)
        for drawing in self.drawings:
            yield drawing.caption()
            yield from (varied_caption(drawing.concept, drawing.colour, name, words) for name in BACKGROUNDS)

    def fingerprint(self) -> str:
        digest = hashlib.sha256("\n".join(drawing.caption() for drawing in self.drawings).encode())
        digest.update(self.rgba.numpy().tobytes())
        return digest.hexdigest()


def load_emoji(size_px: int = 32, *, starters_only: bool = True) -> EmojiData:
    """Every concept in its own colour and in each that it can be given.

    Args:
        size_px: height and width, at most the atlas's 64.
        starters_only: the 149 concepts to begin with, or all.

    Raises:
        DataError: a size that the atlas can't give.
    """
    listing = json.loads((ATLAS / "noto-64.json").read_text(encoding="utf-8"))
    tile_px, columns = listing["tile_px"], listing["columns"]
    if not 8 <= size_px <= tile_px:
        raise DataError(f"need a size of 8 to {tile_px} for the emoji, got {size_px}")
    with Image.open(ATLAS / "noto-64.webp") as opened:
        atlas = np.asarray(opened.convert("RGBA"))
    taken = {entry["name"].lower() for entry in listing["emoji"]}
    drawings: list[Drawing] = []
    tiles: list[NDArray[np.uint8]] = []
    for position, entry in enumerate(listing["emoji"]):
        if starters_only and not entry["starter"]:
            continue
        row, column = divmod(position, columns)
        tile = atlas[row * tile_px : (row + 1) * tile_px, column * tile_px : (column + 1) * tile_px]
        concept = Concept(entry["name"].lower(), tuple(word.lower() for word in entry["keywords"]))
        drawings.append(Drawing(concept, None, entry["starter"]))
        tiles.append(premultiplied(tile, size_px))
        hue = None if entry["subgroup"].startswith("face-") else dominant_hue(tile)
        if hue is None or hue[1] <= DOMINANT_SHARE:
            continue
        for colour, target_deg in COLOURS.items():
            if distance_deg(np.asarray(hue[0]), target_deg) > NEAR_DEG and (
                coloured_name(concept.name, colour) not in taken
            ):
                drawings.append(Drawing(concept, colour, entry["starter"]))
                tiles.append(premultiplied(recoloured(tile, hue[0], target_deg), size_px))
    return EmojiData(tuple(drawings), torch.from_numpy(np.stack(tiles)).permute(0, 3, 1, 2).contiguous())


def premultiplied(tile: NDArray[np.uint8], size_px: int) -> NDArray[np.uint8]:
    """[H, W, 4] → [size, size, 4] with colours multiplied by alpha: what is transparent lends no colour to an edge."""
    alpha = tile[..., 3:].astype(np.float32) / MAX_LEVEL
    flat = np.concatenate([tile[..., :3] * alpha, tile[..., 3:]], axis=-1)
    planes = [
        np.asarray(
            Image.fromarray(flat[..., channel].astype(np.float32)).resize((size_px, size_px), Image.Resampling.BOX)
        )
        for channel in range(4)
    ]
    result: NDArray[np.uint8] = np.rint(np.clip(np.stack(planes, -1), 0, MAX_LEVEL)).astype(np.uint8)
    return result

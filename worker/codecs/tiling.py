"""Large latents decoded piece by piece: memory stays that of a piece, and the seams are blended over.

The tiles are those of diffusers' `AutoencoderKL.enable_tiling`: they overlap by a quarter of their side, in which each
one is blended with those above it and to its left.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

OVERLAP = 0.25


@dataclass(frozen=True, slots=True)
class Tiling:
    """When and how latents are decoded in tiles.

    Attributes:
        above_pixels: of an image: larger ones are.
        side: of a tile, in places of the latent.
        factor: pixels of an image to such a place, along each side.
    """

    above_pixels: int
    side: int
    factor: int

    def applies(self, height: int, width: int) -> bool:
        """Whether a latent of this size is decoded in tiles."""
        return height * width * self.factor**2 > self.above_pixels and max(height, width) > self.side

    @property
    def side_px(self) -> int:
        return self.side * self.factor


def decode_in_tiles(decode: Callable[[Tensor], Tensor], latent: Tensor, tiling: Tiling) -> Tensor:
    """[1, c, h, w] → [1, C, h * factor, w * factor]; `decode` sees one tile per call."""
    side, step = tiling.side, int(tiling.side * (1 - OVERLAP))
    blended_px = int(tiling.side_px * OVERLAP)
    kept_px = tiling.side_px - blended_px
    above: list[Tensor] = []
    bands = []
    for top in range(0, latent.shape[2], step):
        tiles: list[Tensor] = []
        for left in range(0, latent.shape[3], step):
            tile = decode(latent[:, :, top : top + side, left : left + side])
            if above:
                tile = _blended(above[len(tiles)], tile, blended_px, dim=2)
            if tiles:
                tile = _blended(tiles[-1], tile, blended_px, dim=3)
            tiles.append(tile)
        above = tiles
        bands.append(torch.cat([tile[:, :, :kept_px, :kept_px] for tile in tiles], dim=3))
    return torch.cat(bands, dim=2)


def _blended(before: Tensor, tile: Tensor, most_px: int, dim: int) -> Tensor:
    """The tile, whose first pixels along `dim` become the last ones of the tile before it little by little."""
    count = min(before.shape[dim], tile.shape[dim], most_px)
    ramp = (torch.arange(count, dtype=torch.float64) / count).view(-1, *[1] * (3 - dim))
    end, begin = before.narrow(dim, before.shape[dim] - count, count), tile.narrow(dim, 0, count)
    mixed = end * (1 - ramp).to(tile) + begin * ramp.to(tile)
    return torch.cat([mixed, tile.narrow(dim, count, tile.shape[dim] - count)], dim=dim)

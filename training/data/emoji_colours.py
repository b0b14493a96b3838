"""Recolouring a drawing: turning its dominant hue to a named colour and leaving all others as they are."""

import numpy as np
from numpy.typing import NDArray

COLOURS = {"red": 0, "orange": 28, "yellow": 52, "green": 120, "blue": 215, "purple": 275, "pink": 328}
"""Name → hue in degrees."""

Floats = NDArray[np.float64]

STEP_DEG = 6
NEAR_DEG = 25.0
DOMINANT_DEG = 35.0
TURNED_DEG = 45.0
MIN_SATURATION = 0.2
MIN_COLOURED = 0.1
"""Least share of a drawing that must be coloured: a grey mouse does not become blue with its ears."""
DOMINANT_SHARE = 0.55


def to_hsv(rgb: Floats) -> tuple[Floats, Floats, Floats]:
    """[..., 3] in [0, 1] → hue in degrees, saturation, value, each [...]."""
    value, low = rgb.max(-1), rgb.min(-1)
    chroma = value - low
    safe = np.where(chroma > 0, chroma, 1.0)
    red, green, blue = rgb[..., 0], rgb[..., 1], rgb[..., 2]
    sector = np.select(
        [value == red, value == green], [((green - blue) / safe) % 6, (blue - red) / safe + 2], (red - green) / safe + 4
    )
    return np.where(chroma > 0, sector * 60, 0.0), chroma / np.where(value > 0, value, 1.0), value


def to_rgb(hue: Floats, saturation: Floats, value: Floats) -> Floats:
    """The inverse of `to_hsv`."""
    k = (np.array([5.0, 3.0, 1.0]) + hue[..., None] / 60) % 6
    rgb: Floats = value[..., None] * (1 - saturation[..., None] * np.clip(np.minimum(k, 4 - k), 0, 1))
    return rgb


def distance_deg(hue: Floats, other: float) -> Floats:
    """How far two hues are apart on the circle, in [0, 180]."""
    return np.abs((hue - other + 180) % 360 - 180)


def dominant_hue(rgba: NDArray[np.uint8]) -> tuple[float, float] | None:
    """(hue in degrees, its share of the drawing's chroma), or None for a drawing without colour.

    Args:
        rgba: [H, W, 4].
    """
    hue, saturation, value = to_hsv(rgba[..., :3] / 255)
    weight = np.where(saturation > MIN_SATURATION, saturation * value * (rgba[..., 3] / 255), 0.0)
    total = float(weight.sum())
    if total < MIN_COLOURED * float(rgba[..., 3].sum()) / 255:
        return None
    by_degree = np.bincount(hue.astype(np.int64).ravel() % 360, weights=weight.ravel(), minlength=360)
    window = np.arange(-int(NEAR_DEG), int(NEAR_DEG) + 1)
    best = max(range(0, 360, STEP_DEG), key=lambda candidate: float(by_degree[(candidate + window) % 360].sum()))
    offset = (hue - best + 180) % 360 - 180
    near = np.abs(offset) <= NEAR_DEG
    centre = (best + float((offset * weight)[near].sum() / weight[near].sum())) % 360
    return centre, float(weight[distance_deg(hue, centre) <= DOMINANT_DEG].sum() / total)


def recoloured(rgba: NDArray[np.uint8], centre_deg: float, target_deg: float) -> NDArray[np.uint8]:
    """The drawing with the hues near `centre_deg` turned to `target_deg`; others (a leaf's green) stay."""
    hue, saturation, value = to_hsv(rgba[..., :3] / 255)
    turned = np.where(distance_deg(hue, centre_deg) <= TURNED_DEG, hue + target_deg - centre_deg, hue) % 360
    rgb = to_rgb(turned, saturation, value)
    return np.concatenate([np.rint(rgb * 255).astype(np.uint8), rgba[..., 3:]], axis=-1)


def named_colour(rgba: NDArray[np.uint8]) -> str | None:
    """Name of the colour nearest to the dominant hue; None for a drawing without colour."""
    found = dominant_hue(rgba)
    if found is None:
        return None
    return min(COLOURS, key=lambda name: float(distance_deg(np.asarray(found[0]), COLOURS[name])))

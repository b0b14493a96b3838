"""What the clients of the randomised run ask for: seeds alone, prompts, pictures to begin at, and masks."""

import base64
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO

from PIL import Image

PROMPTS = ("a cat", "a dog by the sea", "", "a cat and a dog " * 20)
PICTURES = 4
"""Different ones, and masks: uploads are shared by many jobs."""


@dataclass(frozen=True, slots=True)
class Drawn:
    """A model that the orders name.

    Attributes:
        side: of its images, in pixels.
        mode: of its images, in Pillow's words.
    """

    model: str
    side: int
    mode: str
    by_prompt: bool = False


def body_of(rng: random.Random, models: Sequence[Drawn], seed: int, steps: int) -> dict[str, object]:
    """A request: of four that begin at a picture two are masked, and every prompted one is guided."""
    drawn = rng.choice(models)
    body: dict[str, object] = {"model": drawn.model, "seed": seed, "steps": steps, "batch": rng.randint(1, 3)}
    if drawn.by_prompt:
        body |= {"prompt": rng.choice(PROMPTS), "negative_prompt": rng.choice(PROMPTS), "guidance_scale": 3.0}
    if rng.random() < 0.4:
        body |= {"init_image": _picture(drawn.mode, drawn.side, rng.randrange(PICTURES))}
        body |= {"strength": 1.0 if steps == 1 else rng.choice((0.5, 0.8, 1.0))}
        if rng.random() < 0.5:
            body |= {"mask": _picture("L", drawn.side, rng.randrange(PICTURES)), "paste_back": rng.random() < 0.5}
    return body


@cache
def _picture(mode: str, side: int, number: int) -> str:
    """As a data URI; a mask's pixels are bright and dark too."""
    channels = len(Image.new(mode, (1, 1)).getbands())
    raw = random.Random(number).randbytes(side * side * channels)
    file = BytesIO()
    Image.frombytes(mode, (side, side), raw).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()

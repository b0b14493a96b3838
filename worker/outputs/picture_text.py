"""What an image file says of itself: its receipt, and the `parameters` that image tools read.

A PNG carries both as iTXt chunks, `reverie` and `parameters`; a WebP as EXIF, ImageDescription and UserComment. The
pixels are not touched.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from worker.contract.receipts import EXIF_TAG, PNG_KEYWORD

PNG_PARAMETERS = "parameters"
EXIF_FOLDER = 0x8769
USER_COMMENT = 0x9286
UNICODE_COMMENT = b"UNICODE\0"
"""EXIF 2.3, table 9: which characters follow."""

_LEADING = {"prompt", "negative_prompt", "class_label", "seed", "batch", "format", "version", "model"}
_NAMES = {"steps": "Steps", "sampler": "Sampler", "guidance_scale": "CFG scale"}


@dataclass(frozen=True, slots=True)
class PictureText:
    receipt: Mapping[str, Any]

    @property
    def parameters(self) -> str:
        """In the form of AUTOMATIC1111's web UI, which most tools read: the prompts, then one line of settings."""
        request, image = self.receipt["request"], self.receipt["images"][0]
        lines = [str(request.get("prompt", ""))]
        if request.get("negative_prompt"):
            lines.append(f"Negative prompt: {request['negative_prompt']}")
        settings: dict[str, Any] = {name: request[key] for key, name in _NAMES.items() if key in request}
        settings |= {"Seed": request["seed"], "Size": f"{image['width']}x{image['height']}"}
        settings |= {"Model hash": self.receipt["weights_sha256"][:10], "Model": request["model"]}
        if "class_label" in request:
            settings["Class label"] = request["class_label"]
        further = sorted(request.keys() - _LEADING - _NAMES.keys() - {"width", "height"})
        settings |= {name.replace("_", " ").capitalize(): request[name] for name in further}
        settings["Version"] = f"reverie {self.receipt['computation']['versions'].get('reverie', '')}".strip()
        lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in settings.items()))
        return "\n".join(lines)

    def png_info(self) -> PngInfo:
        info = PngInfo()
        info.add_itxt(PNG_KEYWORD, self._ascii())
        info.add_itxt(PNG_PARAMETERS, self.parameters)
        return info

    def exif(self) -> bytes:
        exif = Image.Exif()
        exif[EXIF_TAG] = self._ascii()
        exif.get_ifd(EXIF_FOLDER)[USER_COMMENT] = UNICODE_COMMENT + self.parameters.encode("utf-16-be")
        return exif.tobytes()

    def _ascii(self) -> str:
        """The same document without a character that EXIF or an old tool could spoil."""
        return json.dumps(self.receipt, sort_keys=True, separators=(",", ":"))


def _quoted(value: Any) -> str:
    """A value that would end the setting early stands in quotes, as that web UI writes it."""
    text = value if isinstance(value, str) else json.dumps(value)
    return json.dumps(text, ensure_ascii=False) if any(mark in text for mark in ',:\n"') else text

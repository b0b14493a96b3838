"""`python -m training.data.rebuild_emoji`: draw the atlas of emoji again from the packages that it comes from.

    pip install 'reverie[atlas]'
    npm pack @iconify-json/noto@1.2.9 emojibase-data@17.0.0
    python -m training.data.rebuild_emoji iconify-json-noto-1.2.9.tgz emojibase-data-17.0.0.tgz --out atlas

Which concepts are in it, in which order and which are the ones to begin with is a choice, and stays that of the listing
that is shipped; drawings, names and keywords are read from the packages, which must be the ones that are pinned here.
"""

import argparse
import base64
import hashlib
import io
import json
import sys
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from training.errors import DataError

ATLAS = Path(__file__).parent / "emoji_atlas"
TILE_PX = 64
COLUMNS = 28


@dataclass(frozen=True, slots=True)
class Package:
    """One version of an npm package.

    Attributes:
        name: with its version.
        sha512_base64: of the archive; npm calls it its integrity.
    """

    name: str
    sha512_base64: str

    def read(self, archive: Path, *members: str) -> list[Any]:
        """JSON files of the package. Raises DataError."""
        try:
            content = archive.read_bytes()
            found = base64.b64encode(hashlib.sha512(content).digest()).decode()
            if found != self.sha512_base64:
                raise DataError(f"{archive} is not {self.name}: its SHA-512 is {found}")
            with tarfile.open(fileobj=io.BytesIO(content)) as opened:
                return [json.load(opened.extractfile(f"package/{member}") or io.BytesIO()) for member in members]
        except (OSError, tarfile.TarError, KeyError, ValueError) as error:
            raise DataError(f"can't read {archive}: {error}") from error


NOTO = Package(
    "@iconify-json/noto@1.2.9",
    "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
)
EMOJIBASE = Package(
    "emojibase-data@17.0.0",
    "Yvgb5AWoHViHV/gq1qr5ZAarcBip+B27/ZLRsUJkbgAEaLlZ/fof9g882LTpmEpyhBNEC0m2SEmItljHsTygjA==",
)


def without_selectors(codepoints: str) -> str:
    """Without the marks that ask for a picture in place of a letter, as the listing has them."""
    return codepoints.replace("-FE0F", "")


def drawing(icons: Mapping[str, Any], chars: Mapping[str, str], codepoints: str) -> str:
    """The SVG of a concept. Raises DataError.

    Args:
        icons: Iconify's icon set.
        chars: codepoints → name of the icon.
        codepoints: in hexadecimal, with "-" between.
    """
    name = next((chars[key] for key in chars if without_selectors(key.upper()) == codepoints), None)
    icon = icons["icons"].get(name)
    if icon is None:
        raise DataError(f"no drawing of {codepoints}")
    left, top, width, height = (
        icon.get(key, icons.get(key, default))
        for key, default in (("left", 0), ("top", 0), ("width", 16), ("height", 16))
    )
    return (
        '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
        f'viewBox="{left} {top} {width} {height}">{icon["body"]}</svg>'
    )


def rendered(svg: str, size_px: int) -> Image.Image:
    """RGBA, a square. Raises DataError."""
    try:
        import resvg_py
    except ImportError as error:
        raise DataError("need the package resvg-py to draw: pip install 'reverie[atlas]'") from error
    with Image.open(
        io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size_px, height=size_px, skip_system_fonts=True)))
    ) as opened:
        return opened.convert("RGBA")


def packed(svgs: Sequence[str], tile_px: int = TILE_PX, columns: int = COLUMNS) -> Image.Image:
    """The drawings in rows of `columns`, each in the middle of its tile."""
    atlas = Image.new("RGBA", (columns * tile_px, -(-len(svgs) // columns) * tile_px))
    for position, svg in enumerate(svgs):
        row, column = divmod(position, columns)
        atlas.paste(rendered(svg, tile_px), (column * tile_px, row * tile_px))
    return atlas


def listed(chosen: Mapping[str, Any], emoji: Sequence[Mapping[str, Any]], groups: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of the listing, with names and keywords as emojibase has them. Raises DataError.

    Args:
        chosen: an entry of the listing that is shipped.
        emoji: emojibase's data in one language.
        groups: emojibase's names of groups and subgroups.
    """
    found = next((each for each in emoji if without_selectors(each["hexcode"]) == chosen["codepoints"]), None)
    if found is None:
        raise DataError(f"no name of {chosen['codepoints']} ({chosen['name']})")
    return {
        "codepoints": chosen["codepoints"],
        "name": found["label"],
        "keywords": sorted(found["tags"]),
        "group": groups["groups"][str(found["group"])].partition("-")[0],
        "subgroup": groups["subgroups"][str(found["subgroup"])],
        "starter": chosen["starter"],
    }


def rebuild(
    noto: Path, emojibase: Path, out: Path, *, pinned: tuple[Package, Package] = (NOTO, EMOJIBASE), listing: Path
) -> int:
    """Write `noto-64.webp` and `noto-64.json` into `out`; returns how many concepts they hold. Raises DataError.

    Args:
        noto, emojibase: archives of the two packages.
        out: a folder; made when missing.
        pinned: what they must be.
        listing: says which concepts, in which order.
    """
    icons, chars = pinned[0].read(noto, "icons.json", "chars.json")
    emoji, groups = pinned[1].read(emojibase, "en/data.json", "meta/groups.json")
    chosen = json.loads(listing.read_text(encoding="utf-8"))["emoji"]
    entries = [listed(entry, emoji, groups) for entry in chosen]
    atlas = packed([drawing(icons, chars, entry["codepoints"]) for entry in entries])
    try:
        out.mkdir(parents=True, exist_ok=True)
        # exact: colours under full transparency stay, as they were drawn
        atlas.save(out / "noto-64.webp", lossless=True, exact=True, method=6)
        document = {"tile_px": TILE_PX, "columns": COLUMNS, "emoji": entries}
        (out / "noto-64.json").write_text(json.dumps(document, indent=0, ensure_ascii=False), encoding="utf-8")
    except OSError as error:
        raise DataError(f"can't write to {out}: {error.strerror or error}") from error
    return len(entries)


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 when the packages are others or can't be read."""
    parser = argparse.ArgumentParser(
        prog="python -m training.data.rebuild_emoji", description="Draw the atlas of emoji again from its packages."
    )
    parser.add_argument("noto", type=Path, help=f"archive of {NOTO.name}, as npm pack writes it")
    parser.add_argument("emojibase", type=Path, help=f"archive of {EMOJIBASE.name}")
    parser.add_argument("--out", type=Path, required=True, help="folder for noto-64.webp and noto-64.json")
    options = parser.parse_args(argv)

    try:
        count = rebuild(options.noto, options.emojibase, options.out, listing=ATLAS / "noto-64.json")
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{count} concepts written to {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

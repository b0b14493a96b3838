"""The atlas of emoji is drawn again from its packages, and from no others."""

import base64
import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from training.data.emoji import ATLAS
from training.data.rebuild_emoji import EMOJIBASE, NOTO, Package, drawing, main, packed, rebuild
from training.errors import DataError

pytest.importorskip("resvg_py")

RED, GREEN = '<path fill="#f00" d="M0 0h128v128H0z"/>', '<circle cx="64" cy="64" r="40" fill="#0f0"/>'
ICONS = {"width": 128, "height": 128, "icons": {"square": {"body": RED}, "circle": {"body": GREEN}}}
CHARS = {"1f7e5": "square", "1f7e2": "circle"}
EMOJI = [
    {"hexcode": "1F7E2", "label": "green circle", "tags": ["round", "green"], "group": 8, "subgroup": 9},
    {"hexcode": "1F7E5", "label": "red square", "tags": ["square", "red"], "group": 8, "subgroup": 9},
]
GROUPS = {"groups": {"8": "symbols-signs"}, "subgroups": {"9": "geometric"}}


def package(path: Path, members: dict[str, object]) -> Package:
    with tarfile.open(path, "w:gz") as archive:
        for name, document in members.items():
            content = json.dumps(document).encode()
            member = tarfile.TarInfo(f"package/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return Package(path.name, base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode())


def test_drawings_lie_in_rows_of_tiles_and_what_is_not_drawn_is_transparent() -> None:
    svgs = [drawing(ICONS, CHARS, codepoints) for codepoints in ("1F7E5", "1F7E2", "1F7E5")]
    atlas = np.asarray(packed(svgs, tile_px=16, columns=2))
    assert atlas.shape == (32, 32, 4)
    assert (atlas[:16, :16] == (255, 0, 0, 255)).all()
    assert (atlas[16:, :16] == (255, 0, 0, 255)).all()
    assert tuple(atlas[8, 24]) == (0, 255, 0, 255)
    assert atlas[0, 16, 3] == 0, "a corner beside the circle"
    assert atlas[16:, 16:].max() == 0, "no drawing is left for the last tile"


def test_the_atlas_holds_the_chosen_concepts_with_the_names_of_the_package(tmp_path: Path) -> None:
    pinned = (
        package(tmp_path / "noto.tgz", {"icons.json": ICONS, "chars.json": CHARS}),
        package(tmp_path / "names.tgz", {"en/data.json": EMOJI, "meta/groups.json": GROUPS}),
    )
    chosen = [
        {"codepoints": codepoints, "name": "as it was", "starter": starter}
        for codepoints, starter in (("1F7E5", True), ("1F7E2", False))
    ]
    (tmp_path / "listing.json").write_text(json.dumps({"emoji": chosen}))
    count = rebuild(
        tmp_path / "noto.tgz",
        tmp_path / "names.tgz",
        tmp_path / "out",
        pinned=pinned,
        listing=tmp_path / "listing.json",
    )
    assert count == 2
    listing = json.loads((tmp_path / "out" / "noto-64.json").read_text())
    assert (listing["tile_px"], listing["columns"]) == (64, 28)
    assert listing["emoji"] == [
        {
            "codepoints": "1F7E5", "name": "red square", "keywords": ["red", "square"], "group": "symbols",
            "subgroup": "geometric", "starter": True,
        },
        {
            "codepoints": "1F7E2", "name": "green circle", "keywords": ["green", "round"], "group": "symbols",
            "subgroup": "geometric", "starter": False,
        },
    ]  # fmt: skip
    with Image.open(tmp_path / "out" / "noto-64.webp") as atlas:
        assert atlas.size == (28 * 64, 64)
        assert atlas.convert("RGBA").getpixel((96, 32)) == (0, 255, 0, 255)


def test_other_packages_than_the_pinned_ones_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "noto.tgz"
    package(archive, {"icons.json": ICONS, "chars.json": CHARS})
    assert main([str(archive), str(archive), "--out", str(tmp_path / "out")]) == 1
    assert f"{archive} is not {NOTO.name}: its SHA-512 is " in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match=r"can't read .*missing"):
        EMOJIBASE.read(tmp_path / "missing")
    with pytest.raises(DataError, match="no drawing of 1F680"):
        drawing(ICONS, CHARS, "1F680")


def test_the_notice_names_what_the_atlas_is_made_from() -> None:
    notice = (ATLAS / "NOTICE").read_text()
    for named in ("Apache License, Version 2.0", "SIL Open Font License", "MIT License", "Unicode License v3"):
        assert named in notice

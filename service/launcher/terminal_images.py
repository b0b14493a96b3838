"""Pictures in terminals that can show them: kitty's graphics protocol, and iTerm2's inline images."""

import base64
from collections.abc import Mapping
from enum import Enum
from io import BytesIO
from typing import TextIO

ROWS = 12
"""Height of a picture, in lines of text."""
CHUNK = 4096
"""Most characters of base64 in one command of kitty's protocol."""


class Protocol(Enum):
    NONE = "none"
    KITTY = "kitty"
    ITERM = "iterm"


def protocol_of(stream: TextIO, environment: Mapping[str, str]) -> Protocol:
    """What the terminal behind `stream` understands, by what it says of itself; NONE also inside tmux and screen."""
    if not stream.isatty() or environment.get("TMUX") or environment.get("TERM", "").startswith(("screen", "tmux")):
        return Protocol.NONE
    program = environment.get("TERM_PROGRAM", "")
    kitty = environment.get("KITTY_WINDOW_ID") or environment.get("TERM") in ("xterm-kitty", "xterm-ghostty")
    if kitty or program == "ghostty":
        return Protocol.KITTY
    if program in ("iTerm.app", "WezTerm") or environment.get("LC_TERMINAL") == "iTerm2":
        return Protocol.ITERM
    return Protocol.NONE


def commands(data: bytes, protocol: Protocol) -> str:
    """What shows the picture at the cursor, `ROWS` lines high; empty where nothing can show or decode it."""
    png = _as_png(data) if protocol is not Protocol.NONE else None
    if png is None:
        return ""
    text = base64.standard_b64encode(png).decode()
    if protocol is Protocol.ITERM:
        return f"\x1b]1337;File=inline=1;height={ROWS};size={len(png)}:{text}\x07"
    chunks = [text[at : at + CHUNK] for at in range(0, len(text), CHUNK)]
    # One image under one id: the next one takes its place. q=2: the terminal answers nothing.
    first = f"a=T,f=100,i=1,p=1,q=2,C=1,r={ROWS},"
    return "".join(
        f"\x1b_G{first if number == 0 else ''}m={int(number < len(chunks) - 1)};{chunk}\x1b\\"
        for number, chunk in enumerate(chunks)
    )


def _as_png(data: bytes) -> bytes | None:
    try:
        import PIL.Image

        with PIL.Image.open(BytesIO(data)) as image:
            buffer = BytesIO()
            image.save(buffer, "PNG")
    except (ImportError, OSError):
        return None
    return buffer.getvalue()

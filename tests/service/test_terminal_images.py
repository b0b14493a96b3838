"""Pictures in terminals: what is sent to which."""

import base64
import io
from dataclasses import dataclass

import pytest
from PIL import Image

from service.client import JobEvent
from service.client.event_feed import PreviewPicture
from service.launcher.progress_line import ProgressLine
from service.launcher.terminal_images import Protocol, commands, protocol_of
from service.schemas import Job, JobState, Progress


@dataclass
class Terminal(io.StringIO):
    tty: bool = True

    def __post_init__(self) -> None:
        super().__init__()

    def isatty(self) -> bool:
        return self.tty


@pytest.mark.parametrize(
    ("environment", "protocol"),
    [
        ({"TERM": "xterm-kitty"}, Protocol.KITTY),
        ({"TERM": "xterm-256color", "KITTY_WINDOW_ID": "1"}, Protocol.KITTY),
        ({"TERM_PROGRAM": "iTerm.app"}, Protocol.ITERM),
        ({"TERM_PROGRAM": "WezTerm"}, Protocol.ITERM),
        ({"TERM": "xterm-256color"}, Protocol.NONE),
        ({"TERM": "screen-256color", "KITTY_WINDOW_ID": "1"}, Protocol.NONE),
        ({}, Protocol.NONE),
    ],
)
def test_a_terminal_is_known_by_what_it_says_of_itself(environment: dict[str, str], protocol: Protocol) -> None:
    assert protocol_of(Terminal(), environment) is protocol
    assert protocol_of(Terminal(tty=False), environment) is Protocol.NONE


def webp(size: int = 64) -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((size, size), 90).save(buffer, "WEBP", lossless=True)
    return buffer.getvalue()


def shown_png(text: str) -> bytes:
    """The picture of kitty's commands, whose pieces must be announced rightly."""
    pieces = [part.partition(";") for part in text.removeprefix("\x1b_G").removesuffix("\x1b\\").split("\x1b\\\x1b_G")]
    assert [keys.rpartition("m=")[2] for keys, _, _ in pieces] == ["1"] * (len(pieces) - 1) + ["0"]
    assert len(pieces) > 1
    assert all(len(data) <= 4096 for _, _, data in pieces)
    return base64.b64decode("".join(data for _, _, data in pieces))


def test_a_preview_arrives_whole_as_png() -> None:
    preview = webp()
    with Image.open(io.BytesIO(shown_png(commands(preview, Protocol.KITTY)))) as shown:
        assert shown.format == "PNG"
        with Image.open(io.BytesIO(preview)) as sent:
            assert shown.convert("RGB").tobytes() == sent.convert("RGB").tobytes()
    assert commands(preview, Protocol.ITERM).startswith("\x1b]1337;File=inline=1;")


@pytest.mark.parametrize("protocol", list(Protocol))
def test_bytes_that_are_no_picture_show_nothing(protocol: Protocol) -> None:
    assert commands(b"no picture", protocol) == ""


def running(step: int) -> Job:
    return Job.model_construct(status=JobState.RUNNING, progress=Progress(step=step, steps=4))


def test_the_line_shows_previews_only_where_they_can_be_seen() -> None:
    for environment, seen in (({"TERM": "xterm-kitty"}, True), ({"TERM": "xterm"}, False)):
        terminal = Terminal()
        line = ProgressLine(terminal, environment, clock=lambda: 0.0)
        assert line.wants_previews is seen
        line.show(JobEvent("progress", running(2), (PreviewPicture(0, 2, webp()),)))
        assert ("\x1b_G" in terminal.getvalue()) is seen


def test_nothing_is_written_where_there_is_no_terminal() -> None:
    stream = Terminal(tty=False)
    line = ProgressLine(stream, {"TERM": "xterm-kitty"})
    line.show(JobEvent("progress", running(2), (PreviewPicture(0, 2, webp()),)))
    line.end()
    assert stream.getvalue() == ""

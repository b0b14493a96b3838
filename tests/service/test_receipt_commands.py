"""`reverie receipt`, and what `reverie replay` refuses before it draws: nothing here needs a gateway."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from service.launcher import cli
from tests.worker.contract.test_receipts import IMAGES, PROVENANCE
from worker.contract.receipts import receipt_of
from worker.contract.signing import Signer

RECEIPT = receipt_of(PROVENANCE, IMAGES)


def test_a_key_is_made_and_what_it_signed_is_checked_offline(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    key, receipt = tmp_path / "key.pem", tmp_path / "receipt.json"
    assert cli.main(["receipt", "new-key", str(key)]) == 0
    public_key = capsys.readouterr().out.strip()
    receipt.write_text(json.dumps(Signer.read(key).sign(RECEIPT), indent=2))
    assert cli.main(["receipt", "verify", str(receipt), "--key", public_key]) == 0
    assert capsys.readouterr().out == f"signed by {public_key}\n"
    receipt.write_text(receipt.read_text().replace('"seed": 7', '"seed": 8'))
    assert cli.main(["receipt", "verify", str(receipt)]) == 1
    assert capsys.readouterr().err == f"reverie: {receipt}: it is not what was signed\n"
    assert cli.main(["receipt", "new-key", str(key)]) == 1
    assert "can't write the key" in capsys.readouterr().err


def test_a_receipt_is_shown_as_it_is(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(RECEIPT))
    assert cli.main(["receipt", "show", str(path)]) == 0
    assert json.loads(capsys.readouterr().out) == RECEIPT


def bare_png() -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "can't read"),
        (b"", "is no receipt"),
        (b"{}", "is no receipt"),
        (b"[" * 100_000, "is no receipt"),
        (json.dumps({**RECEIPT, "format": "other/1"}).encode(), "need a receipt of the format"),
        (bare_png(), "is a picture that carries no receipt"),
        (bare_png()[:20], "is a picture that can't be read"),
        (b"RIFF\x10\0\0\0WEBPVP8L\0\0\0\0", "is a picture that can't be read"),
    ],
)
def test_what_carries_no_receipt_is_reported_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes | None, reason: str
) -> None:
    path = tmp_path / "found"
    if content is not None:
        path.write_bytes(content)
    assert cli.main(["replay", str(path)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reverie: ")
    assert reason in line


def test_a_request_of_another_release_is_named_by_its_field(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps({**RECEIPT, "request": {**RECEIPT["request"], "colour": "red"}}))
    command = [sys.executable, "-m", "service.launcher.cli", "replay", str(path), "--alone"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert done.stderr == (
        "reverie: it can't be drawn again: its request is none of this release: colour: "
        "Extra inputs are not permitted\n"
    )

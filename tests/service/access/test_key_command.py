"""`reverie key new`, and the commands that send a key."""

import re
import stat
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from service.access.api_key import KEY_PATTERN, CostLimit, Scope, parse_keys
from service.access.key_ring import KeyRing
from service.launcher.cli import main
from tests.service.access.conftest import Keys
from tests.service.fake_worker import FakeWorker


@pytest.fixture(autouse=True)
def no_keys_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("REVERIE_API_KEYS", "REVERIE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def test_a_key_is_shown_once_and_its_line_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    file.write_text("# ours")
    shown = []
    for options in (["--name", "alice"], ["--scope", "admin", "--expires", "90d", "--limit", "600/3600"]):
        assert main(["key", "new", "--file", str(file), *options]) == 0
        output = capsys.readouterr()
        assert KEY_PATTERN.fullmatch(output.out.strip())
        assert output.out.strip() not in output.err
        shown.append(output.out.strip())
    alice, admin = parse_keys(file.read_text()).values()
    assert (alice.name, alice.scope, alice.expires_at, alice.limit) == ("alice", Scope.GENERATE, None, None)
    assert (admin.name, admin.scope, admin.limit) == (admin.prefix, Scope.ADMIN, CostLimit(600, 3600))
    assert admin.expires_at is not None
    assert [KeyRing(str(file)).find(key) for key in shown] == [alice, admin]
    assert not any(key[13:] in file.read_text() for key in shown)


def test_a_new_file_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    assert main(["key", "new", "--file", str(file)]) == 0
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_the_gateways_own_file_is_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("REVERIE_API_KEYS", str(tmp_path / "keys"))
    assert main(["key", "new"]) == 0
    assert len(parse_keys((tmp_path / "keys").read_text())) == 1
    monkeypatch.setenv("REVERIE_API_KEYS", (tmp_path / "keys").read_text())
    capsys.readouterr()
    assert main(["key", "new"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("rvr_")]
    assert len(parse_keys(line)) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--name", "a b"],
        ["--expires", "2001-01-01"],
        ["--expires", "soon"],
        ["--limit", "many"],
        ["--file", "/no/keys"],
    ],
)
def test_what_cannot_be_is_one_line(options: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["key", "new", *options]) == 1
    output = capsys.readouterr()
    assert output.out == ""
    assert re.fullmatch(r"reverie: .+\n", output.err)


def test_a_broken_file_gets_no_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "keys"
    file.write_text("what is this")
    assert main(["key", "new", "--file", str(file)]) == 1
    assert file.read_text() == "what is this"
    assert "line 1" in capsys.readouterr().err


def test_the_command_line_sends_the_key_of_its_user(
    keys: Keys,
    worker: FakeWorker,
    start_gateway: Callable[..., httpx.Client],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    url = str(start_gateway(api_keys=keys.lines).base_url)
    assert main(["models", "--url", url]) == 1
    assert "need an API key" in capsys.readouterr().err
    monkeypatch.setenv("REVERIE_API_KEY", keys.reader)
    assert main(["models", "--url", url]) == 0
    assert "digits" in capsys.readouterr().out

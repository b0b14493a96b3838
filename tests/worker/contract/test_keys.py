"""Each Redis name stands in one place: whoever uses it takes it from there, in Python and in Lua."""

import ast
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from tests.conftest import ValkeyHandle
from worker.contract import keys

REPOSITORY = Path(__file__).resolve().parents[3]
KEYS_FILE = Path("worker/contract/keys.py")
FIELDS = [value for name, value in vars(keys).items() if name.endswith("_FIELD")]
NAME = re.compile(rf"(?<![:\w])(?:(?:rq|reverie):[a-z]|(?:{'|'.join(FIELDS)})\b)")


def test_no_redis_name_stands_outside_of_the_module_that_names_them() -> None:
    sources = [path for room in ("service", "worker", "docker") for path in (REPOSITORY / room).rglob("*.py")]
    assert len(sources) > 50
    strays = [
        f"{path.relative_to(REPOSITORY)}:{node.lineno}: {node.value[:60]!r}"
        for path in sources
        if path != REPOSITORY / KEYS_FILE
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and NAME.search(node.value)
    ]
    assert strays == []


def test_every_user_of_a_redis_name_follows_when_it_is_renamed(valkey: ValkeyHandle, tmp_path: Path) -> None:
    """A copy of the code in which every name is another one: no command of a whole life of jobs names an old one."""
    for room in ("service", "worker"):
        shutil.copytree(REPOSITORY / room, tmp_path / room, ignore=shutil.ignore_patterns("bundled", "__pycache__"))
    names = (tmp_path / KEYS_FILE).read_text()
    renamed = re.sub(r'"(rq|reverie)([:_])([a-z])', r'"other\2\3', names)
    assert renamed.count('"other') > 20
    (tmp_path / KEYS_FILE).write_text(renamed)

    commands: list[str] = []
    with valkey.client.monitor() as monitor:  # type: ignore[no-untyped-call]  # redis-py has no types for it
        life = subprocess.run(
            [sys.executable, "-m", "tests.worker.contract.life_of_jobs", valkey.url],
            # The tests themselves come from here, what they test from the copy.
            env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{REPOSITORY}"},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert life.returncode == 0, life.stderr
        assert life.stdout == f"{tmp_path}\n", "it did not run the copy"
        valkey.client.echo("end")
        for heard in monitor.listen():
            if heard["command"].endswith("ECHO end"):
                break
            commands.append(heard["command"])
    # Redis reports a script's text when it is loaded, and what it does command by command.
    named = [command for command in commands if not command.upper().startswith("SCRIPT LOAD")]
    assert sum("other:" in command for command in named) > 50
    assert [command for command in named if NAME.search(command)] == []

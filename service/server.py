"""uvicorn, except that shutdown ends the open event streams before it waits for them."""

import logging
import socket

import uvicorn
from fastapi import FastAPI

from service.gateway import Gateway

log = logging.getLogger(__name__)


class GatewayServer(uvicorn.Server):
    """
    Args:
        grace_s: how long requests in flight may take to end after SIGTERM.
    """

    def __init__(self, app: FastAPI, *, grace_s: int) -> None:
        super().__init__(
            uvicorn.Config(
                app, log_config=None, access_log=False, timeout_graceful_shutdown=grace_s, server_header=False
            )
        )
        self._gateway: Gateway = app.state.gateway
        self._grace_s = grace_s

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for listener in sockets or ():
            host, port = listener.getsockname()[:2]
            log.info("listening on %s port %d", host, port)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        streams = self._gateway.events.watched
        log.info("stopping: %d event stream(s) end, other requests have %d s", streams, self._grace_s)
        self._gateway.events.end()
        await super().shutdown(sockets)
        log.info("ended")

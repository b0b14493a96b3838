"""uvicorn, except that shutdown ends the open event streams before it waits for them."""

import socket

import uvicorn
from fastapi import FastAPI

from service.gateway import Gateway


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

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._gateway.events.end()
        await super().shutdown(sockets)

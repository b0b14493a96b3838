"""uvicorn, except that shutdown ends the open event streams before it waits for them."""

import logging
import socket

import uvicorn
from fastapi import FastAPI

from service.gateway import Gateway
from service.http_protocol import guarded
from service.request_guard import HEADER_BYTES
from service.response_headers import ResponseHeaders

log = logging.getLogger(__name__)


class GatewayServer(uvicorn.Server):
    """
    Args:
        grace_s: how long requests in flight may take to end after SIGTERM.
    """

    def __init__(self, app: FastAPI, *, grace_s: int) -> None:
        self._gateway: Gateway = app.state.gateway
        settings = self._gateway.settings
        super().__init__(
            uvicorn.Config(
                ResponseHeaders(app),
                interface="asgi3",
                http=guarded(settings.receive_timeout_s),
                ws="none",
                h11_max_incomplete_event_size=HEADER_BYTES,
                limit_concurrency=settings.max_connections,
                # Nothing else is believed of what X-Forwarded-For and X-Forwarded-Proto say.
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                log_config=None,
                access_log=False,
                timeout_graceful_shutdown=grace_s,
                server_header=False,
            )
        )
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

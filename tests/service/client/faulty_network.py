"""Transports that lose what a real network loses, around httpx's own."""

from collections.abc import AsyncIterator, Callable, Iterator

import httpx

Fault = Callable[[httpx.Request, int], str | None]
"""Of a request and how many came before it: `lose` the answer, `cut` it short, or None."""


class FaultyTransport(httpx.HTTPTransport):
    """Passes requests on; what becomes of the answers is up to `fault`."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.requests: list[httpx.Request] = []
        self._fault = fault

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        fault = self._fault(request, len(self.requests))
        self.requests.append(request)
        response = super().handle_request(request)
        if fault == "lose":
            response.read()
            raise httpx.ReadError("connection reset", request=request)
        if fault == "cut":
            return httpx.Response(response.status_code, headers=response.headers, stream=_Cut(response, request))
        return response


class _Cut(httpx.SyncByteStream):
    """The first piece that holds an event; then the connection breaks."""

    def __init__(self, response: httpx.Response, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._response.iter_raw():
            yield piece
            if b"event:" in piece:
                break
        raise httpx.ReadError("connection reset", request=self._request)

    def close(self) -> None:
        self._response.close()


class AsyncFaultyTransport(httpx.AsyncHTTPTransport):
    """The same for asyncio."""

    def __init__(self, fault: Fault) -> None:
        super().__init__()
        self.requests: list[httpx.Request] = []
        self._fault = fault

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        fault = self._fault(request, len(self.requests))
        self.requests.append(request)
        response = await super().handle_async_request(request)
        if fault == "lose":
            await response.aread()
            raise httpx.ReadError("connection reset", request=request)
        if fault == "cut":
            return httpx.Response(response.status_code, headers=response.headers, stream=_AsyncCut(response, request))
        return response


class _AsyncCut(httpx.AsyncByteStream):
    def __init__(self, response: httpx.Response, request: httpx.Request) -> None:
        self._response = response
        self._request = request

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for piece in self._response.aiter_raw():
            yield piece
            if b"event:" in piece:
                break
        raise httpx.ReadError("connection reset", request=self._request)

    async def aclose(self) -> None:
        await self._response.aclose()

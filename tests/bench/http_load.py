"""Sends one HTTP request over and over on a few kept connections, with as little work of its own as can be."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from tests.bench.samples import percentile


class NotTwoHundred(Exception):
    """A server refused what it is measured with."""


@dataclass(frozen=True, slots=True)
class Load:
    """Of one run."""

    per_s: float
    took_s: Sequence[float]
    """Each request's own time."""

    def p_ms(self, share: float) -> float:
        return 1e3 * percentile(self.took_s, share)


def request(method: str, path: str, body: bytes = b"") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n"
    if body:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    return head.encode() + b"\r\n" + body


def load(port: int, message: bytes, *, seconds: float, connections: int = 16) -> Load:
    return asyncio.run(_load(port, message, seconds, connections))


async def _load(port: int, message: bytes, seconds: float, connections: int) -> Load:
    began = time.perf_counter()
    taken = await asyncio.gather(*(_repeat(port, message, began + seconds) for _ in range(connections)))
    took_s = [one for of_connection in taken for one in of_connection]
    return Load(len(took_s) / (time.perf_counter() - began), took_s)


async def _repeat(port: int, message: bytes, until: float) -> list[float]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    took_s = []
    while (began := time.perf_counter()) < until:
        writer.write(message)
        await read_answer(reader)
        took_s.append(time.perf_counter() - began)
    writer.close()
    return took_s


async def read_answer(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 20"):
        raise NotTwoHundred((head + await reader.read(500)).decode(errors="replace"))
    length = next((line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), None)
    if length is None:  # a stream, in chunks to its end
        return await reader.readuntil(b"\r\n0\r\n\r\n")
    return await reader.readexactly(int(length.partition(b":")[2]))

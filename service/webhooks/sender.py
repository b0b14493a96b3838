"""One attempt to tell a client's server: bounded in time, and in what is read of the answer."""

import asyncio
import ssl
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import httpx

from service.webhooks.destination import Destination, Destinations, Refused
from worker.contract.environment import PREFIX, SettingsError

ATTEMPT_S = 10.0
"""Longest attempt, from resolving the name to the head of the answer."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one attempt."""

    status: int | None
    """None: there was no answer."""
    error: str | None

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_final(self) -> bool:
        """Whether trying again is of no use: it was taken, or the receiver says that it is gone for good."""
        return self.is_delivered or self.status == httpx.codes.GONE


class Sender:
    """
    Args:
        authorities: a PEM file of authorities that are trusted beside the system's.

    Raises:
        SettingsError: that file can't be used.
    """

    def __init__(
        self, destinations: Destinations, authorities: Path | None = None, attempt_s: float = ATTEMPT_S
    ) -> None:
        self._destinations = destinations
        self._attempt_s = attempt_s
        self._tls = ssl.create_default_context()
        try:
            if authorities is not None:
                self._tls.load_verify_locations(authorities)
        except OSError as error:  # of which errors of TLS are some
            raise SettingsError(f"{PREFIX}WEBHOOK_CA={authorities}: {error.strerror or error}") from None

    async def send(self, url: str, body: bytes, headers: dict[str, str], attempt: int) -> Answer:
        """Never raises for what the other side does; `attempt` chooses among several addresses in turn."""
        try:
            async with asyncio.timeout(self._attempt_s):
                destination = self._destinations.parse(url)
                addresses = await self._destinations.addresses(destination)
                return await self._post(destination, addresses[attempt % len(addresses)], body, headers)
        except Refused as error:
            return Answer(None, f"refused: {error}")
        except TimeoutError:
            return Answer(None, f"no answer within {self._attempt_s:g} s")
        except (httpx.HTTPError, OSError) as error:
            return Answer(None, f"{type(error).__name__}: {error}"[:200])

    async def _post(self, destination: Destination, address: str, body: bytes, headers: dict[str, str]) -> Answer:
        host = f"[{address}]" if ":" in address else address
        # No proxy of the environment, no redirect, no cookie, no connection kept: one request to one checked address.
        async with httpx.AsyncClient(
            verify=self._tls, trust_env=False, follow_redirects=False, timeout=self._attempt_s
        ) as client:
            request = client.build_request(
                "POST",
                httpx.URL(
                    scheme=destination.scheme,
                    host=host,
                    port=destination.port,
                    raw_path=destination.path.encode("ascii"),
                ),
                content=body,
                headers={
                    "Host": destination.authority,
                    "Content-Type": "application/json",
                    "User-Agent": f"Reverie/{version('reverie')}",
                    **headers,
                },
                extensions={"sni_hostname": destination.host},
            )
            # Streamed and left: not a byte of the answer's body is read.
            answer = await client.send(request, stream=True)
            await answer.aclose()
        if 300 <= answer.status_code < 400:
            return Answer(answer.status_code, "redirects are not followed")
        return Answer(answer.status_code, None if answer.is_success else f"answered {answer.status_code}")

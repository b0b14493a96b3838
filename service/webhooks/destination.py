"""Where a webhook may go: hosts that the operator named, at addresses that are not of some private network."""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import httpx

LONGEST_URL = 2048
DEFAULT_PORTS = {"https": 443, "http": 80}
NAT64 = ipaddress.ip_network("64:ff9b::/96")

Resolver = Callable[[str, int], Awaitable[Sequence[str]]]
"""The addresses of a host; OSError when there are none."""


class Refused(ValueError):
    """No webhook goes there; the message is the rule that says so."""


@dataclass(frozen=True, slots=True)
class Destination:
    scheme: str
    host: str
    port: int
    path: str
    """With the query."""

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class AllowedHost:
    """One entry of REVERIE_WEBHOOK_HOSTS: `host`, `host:port`, `*.domain`, or one of these after `http://`."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, entry: str) -> "AllowedHost":
        scheme, _, rest = entry.rpartition("://")
        try:
            url = httpx.URL(f"{scheme or 'https'}://{rest.removeprefix('*.')}")
        except httpx.InvalidURL as error:
            raise ValueError(f"{entry!r} is no host: {error}") from None
        if url.scheme not in DEFAULT_PORTS or not url.host or url.path not in ("", "/") or url.userinfo:
            raise ValueError(f"need hosts like hooks.example.com, *.example.com:8443 or http://10.0.0.5, got {entry!r}")
        name = url.raw_host.decode("ascii").lower()
        return cls(url.scheme, f"*.{name}" if rest.startswith("*.") else name, url.port or DEFAULT_PORTS[url.scheme])

    def admits(self, destination: Destination) -> bool:
        if (self.scheme, self.port) != (destination.scheme, destination.port):
            return False
        if self.host.startswith("*."):
            return destination.host.endswith(self.host[1:]) and _literal(destination.host) is None
        return destination.host == self.host


class Destinations:
    """
    Args:
        allowed: none turns webhooks off.
    """

    def __init__(self, allowed: Sequence[AllowedHost], resolve: Resolver | None = None) -> None:
        self._allowed = tuple(allowed)
        self._resolve = resolve or resolve_with_system

    def parse(self, url: str) -> Destination:
        """
        Raises:
            Refused
        """
        if not self._allowed:
            raise Refused("webhooks are off: the operator has named no host for them")
        if len(url) > LONGEST_URL:
            raise Refused(f"need at most {LONGEST_URL} characters")
        # Parsed once: what is checked is what is connected to.
        try:
            parsed = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise Refused(f"not a URL: {error}") from None
        if parsed.scheme not in DEFAULT_PORTS or not parsed.host:
            raise Refused("need an address like https://hooks.example.com/path")
        if parsed.userinfo or parsed.fragment:
            raise Refused("need a URL without a user, a password or a fragment")
        port = parsed.port or DEFAULT_PORTS[parsed.scheme]
        destination = Destination(
            parsed.scheme, parsed.raw_host.decode("ascii").lower(), port, parsed.raw_path.decode("ascii")
        )
        if not any(entry.admits(destination) for entry in self._allowed):
            raise Refused("the operator allows no webhooks to this host, port and scheme")
        return destination

    async def addresses(self, destination: Destination) -> Sequence[str]:
        """Where to connect to, checked: whoever connects must not resolve again.

        Raises:
            Refused: the name leads to an address that is not public.
            OSError: it leads nowhere.
        """
        literal = _literal(destination.host)
        if literal is not None:
            return [str(literal)]  # the operator named this very address
        found = await self._resolve(destination.host, destination.port)
        if not found:
            raise OSError(f"{destination.host} has no address")
        for address in found:
            if not is_public(address):
                raise Refused(f"{destination.host} leads to an address that is not public")
        return found


async def resolve_with_system(host: str, port: int) -> Sequence[str]:
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_ADDRCONFIG)
    except UnicodeError as error:  # a label that is empty or longer than 63 characters
        raise OSError(f"{host} is no name of a host") from error
    return [str(address[0]) for *_, address in found]


def is_public(text: str) -> bool:
    """Whether an address is one of the internet, whatever it is wrapped in."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id is not None:
            return False
        inner = address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)
        if inner is None and address in NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
    return address.is_global and not address.is_multicast and not address.is_reserved


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None

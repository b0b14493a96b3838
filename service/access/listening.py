"""When a gateway may do without keys: by the address that it listens on."""

import ipaddress
import socket

HOW_TO_GO_ON = (
    "make a key with `reverie key new --file keys` and set REVERIE_API_KEYS=keys, "
    "or set REVERIE_ALLOW_ANONYMOUS=1 to let in whoever can reach it"
)


def require_keys(host: str, has_keys: bool, allow_anonymous: bool) -> None:
    """Raise ValueError for a gateway that others could reach and that would let all of them in."""
    if has_keys or allow_anonymous or is_loopback(host):
        return
    raise ValueError(
        f"REVERIE_HOST={host} can be reached from other machines and there are no API keys: {HOW_TO_GO_ON}"
    )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach what listens there. A name that can't be resolved is not."""
    try:
        addresses = {str(entry[4][0]) for entry in socket.getaddrinfo(host, None, flags=socket.AI_PASSIVE)}
    except OSError:
        return False
    return bool(addresses) and all(ipaddress.ip_address(text.partition("%")[0]).is_loopback for text in addresses)

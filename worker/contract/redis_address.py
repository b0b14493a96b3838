"""The address of Redis: which forms are taken, and how one is shown."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field


def _with_known_scheme(url: str) -> str:
    if not re.match(r"(redis|rediss|unix)://.", url):
        raise ValueError("need redis://, rediss:// or unix://")
    return url


RedisUrl = Annotated[
    str,
    AfterValidator(_with_known_scheme),
    Field(description="the address of Redis, for example redis://localhost:6379/0"),
]


def without_password(url: str) -> str:
    """The address as it may be shown: without its user and password, wherever redis-py would read them."""
    address, mark, query = url.partition("?")
    # Up to the last @: a password may hold an @ or a slash that nobody encoded.
    address = re.sub(r"(?<=://)(?!/).*@", "***@", address, flags=re.DOTALL)
    query = re.sub(r"(?i)\b((?:user|pass)\w*=)[^&]*", r"\1***", query)
    return address + mark + query

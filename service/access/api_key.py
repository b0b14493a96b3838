"""API keys: what one looks like, what is kept of it, and the lines that hold several.

A key is `rvr_<prefix>_<secret>`. Its prefix names it; of the secret only a SHA-256 is kept, which is enough for 256
random bits: there is nothing to guess that a slow hash would protect. A line reads

    rvr_3f2a9c1b sha256=… name=alice scope=generate expires=2027-01-01T00:00:00+00:00 limit=600/3600

and may end with `webhook=https://hooks.example.com/done events=succeeded,failed`.
"""

import hashlib
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Self

from worker.contract.webhook_queue import Webhook, WebhookEvent

KEY_PATTERN = re.compile(r"rvr_([0-9a-f]{8})_[A-Za-z0-9_-]{43}")
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
WEBHOOK_PATTERN = re.compile(r"https?://[^\s#;]{1,2040}")
DIGEST_FIELD = "sha256="


class KeysError(ValueError):
    """Keys that can't be used: the line and the rule, and never what the line holds."""


class Scope(StrEnum):
    """What a key may do; each includes the ones before it."""

    READ = "read"
    """See the models, and what belongs to the key's name."""
    GENERATE = "generate"
    """Draw, and cancel what was asked for."""
    ADMIN = "admin"
    """See and cancel everybody's jobs, read the metrics."""

    def includes(self, other: "Scope") -> bool:
        order = list(Scope)
        return order.index(self) >= order.index(other)


@dataclass(frozen=True, slots=True)
class CostLimit:
    """How much a name may ask for: so many seconds of a worker in each window, all of them at once if it likes."""

    worker_s: int
    window_s: int

    @classmethod
    def parse(cls, text: str) -> Self:
        parsed = re.fullmatch(r"(\d{1,9})/(\d{1,9})", text, re.ASCII)
        if parsed is None or not int(parsed[1]) or not int(parsed[2]):
            raise ValueError("a limit is seconds of a worker and the window's seconds, like 600/3600")
        return cls(int(parsed[1]), int(parsed[2]))

    def __str__(self) -> str:
        return f"{self.worker_s}/{self.window_s}"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key."""

    prefix: str
    digest: bytes
    """SHA-256 of the whole key."""
    name: str
    """Whose it is: keys of one name share their jobs, so that a key can be replaced."""
    scope: Scope
    expires_at: datetime | None = None
    limit: CostLimit | None = None
    webhook: Webhook | None = None
    """Told of the ends of its jobs, where a request says nothing of one."""

    def line(self) -> str:
        parts = [f"rvr_{self.prefix}", DIGEST_FIELD + self.digest.hex(), f"name={self.name}", f"scope={self.scope}"]
        if self.expires_at is not None:
            parts.append(f"expires={self.expires_at.isoformat()}")
        if self.limit is not None:
            parts.append(f"limit={self.limit}")
        if self.webhook is not None:
            parts += [f"webhook={self.webhook.url}", f"events={','.join(self.webhook.events)}"]
        return " ".join(parts)


def new_key(
    name: str | None,
    scope: Scope,
    expires_at: datetime | None = None,
    limit: CostLimit | None = None,
    webhook: Webhook | None = None,
) -> tuple[str, ApiKey]:
    """A key for its user, and what is kept of it. Without a name it is the only one of its own."""
    prefix = secrets.token_hex(4)
    name = name or prefix
    if not NAME_PATTERN.fullmatch(name):
        raise KeysError("a name has 1 to 64 letters, digits and ._@- and begins with a letter or digit")
    key = f"rvr_{prefix}_{secrets.token_urlsafe(32)}"
    return key, ApiKey(prefix, digest_of(key), name, scope, expires_at, limit, webhook)


def digest_of(key: str) -> bytes:
    return hashlib.sha256(key.encode(errors="surrogateescape")).digest()


def parse_keys(text: str) -> dict[str, ApiKey]:
    """The keys of a file or a variable, by prefix: one a line or between semicolons, `#` begins a comment.

    Raises:
        KeysError: a line breaks a rule.
    """
    keys: dict[str, ApiKey] = {}
    for number, line in enumerate(re.split(r"[\n;]", text), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            key = _parse_line(words)
            if key.prefix in keys:
                raise ValueError("its prefix is taken by an earlier line")
        except ValueError as error:
            raise KeysError(f"line {number} of the API keys: {error}") from None  # the cause would show the line
        keys[key.prefix] = key
    return keys


def _parse_line(words: list[str]) -> ApiKey:
    if any(KEY_PATTERN.search(word) for word in words):
        raise ValueError("it holds a key itself; only the line that `reverie key new` gives belongs here")
    prefix = re.fullmatch(r"rvr_([0-9a-f]{8})", words[0])
    if prefix is None:
        raise ValueError("it does not begin with a key's prefix, rvr_ and eight hexadecimal digits")
    fields = _fields(words[1:])
    digest, name = fields.pop("sha256", ""), fields.pop("name", prefix[1])
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise ValueError("it needs sha256= and 64 hexadecimal digits")
    if not NAME_PATTERN.fullmatch(name):
        raise ValueError("a name has 1 to 64 letters, digits and ._@- and begins with a letter or digit")
    scope = fields.pop("scope", Scope.GENERATE.value)
    if scope not in set(Scope):
        raise ValueError(f"a scope is one of {', '.join(Scope)}")
    expires, limit = fields.pop("expires", None), fields.pop("limit", None)
    url, events = fields.pop("webhook", None), fields.pop("events", None)
    if fields:
        raise ValueError("it has an unknown field; known: sha256, name, scope, expires, limit, webhook, events")
    if events is not None and url is None:
        raise ValueError("events= goes with webhook=")
    return ApiKey(
        prefix=prefix[1],
        digest=bytes.fromhex(digest),
        name=name,
        scope=Scope(scope),
        expires_at=parse_moment(expires) if expires else None,
        limit=CostLimit.parse(limit) if limit else None,
        webhook=parse_webhook(url, events) if url else None,
    )


def parse_webhook(url: str, events: str | None = None) -> Webhook:
    """
    Args:
        events: by commas; None for all.
    """
    if not WEBHOOK_PATTERN.fullmatch(url):
        raise ValueError(
            "a webhook is an address like https://hooks.example.com/done, where # and ; are written %23, %3B"
        )
    names = events.split(",") if events is not None else list(WebhookEvent)
    if not set(names) <= set(WebhookEvent) or len(set(names)) != len(names):
        raise ValueError(f"a webhook's events are some of {', '.join(WebhookEvent)}, each once, by commas")
    return Webhook(url=url, events=tuple(WebhookEvent(name) for name in names))


def _fields(words: Iterable[str]) -> dict[str, str]:
    fields: dict[str, str] = {}
    for word in words:
        field, mark, value = word.partition("=")
        if not mark or field in fields:
            raise ValueError("behind the prefix it has fields, each once")
        fields[field] = value
    return fields


def parse_moment(text: str) -> datetime:
    """A day or a moment; UTC where it names no zone."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError("a key expires at a day or a moment like 2027-01-01 or 2027-01-01T12:00:00+00:00") from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)

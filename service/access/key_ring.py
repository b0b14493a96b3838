"""The keys that are valid now, read again whenever their file changes."""

import hmac
import logging
import os
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

from service.access.api_key import DIGEST_FIELD, KEY_PATTERN, ApiKey, KeysError, digest_of, parse_keys

log = logging.getLogger(__name__)

LOOK_S = 1.0
"""How often the file is looked at, at most: a key that was added or removed counts within that time."""
NOBODYS_DIGEST = bytes(32)


class KeyRing:
    """Keys from `REVERIE_API_KEYS`: their lines, or the path of a file with such lines.

    A file that is broken or gone when it is read again changes nothing but the log: its keys stay as they were.

    Args:
        check: raises KeysError for a key that can't be used here.

    Raises:
        KeysError: the lines or the file can't be read at the start.
    """

    def __init__(
        self,
        source: str,
        check: Callable[[ApiKey], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._check = check
        self._clock = clock
        self._now = now
        if KEY_PATTERN.search(source):
            raise KeysError("it holds a key itself; need the lines that `reverie key new` gives, or their file")
        self._path = None if DIGEST_FIELD in source else Path(source).expanduser()
        self._looked_at = clock()
        self._seen: object = None
        self._keys: Mapping[str, ApiKey] = self._checked(source) if self._path is None else self._read(self._path)
        if not self._keys:
            log.warning("there is no API key: every request is refused until one is added")

    def find(self, key: str) -> ApiKey | None:
        """What is known of a key that a client sent; None unless it is valid now."""
        self._look()
        parsed = KEY_PATTERN.fullmatch(key)
        known = self._keys.get(parsed[1]) if parsed else None
        # Always one hash and one comparison, in constant time: the time that a refusal takes reveals nothing.
        matches = hmac.compare_digest(digest_of(key), known.digest if known else NOBODYS_DIGEST)
        return known if known is not None and matches and self._is_unexpired(known) else None

    def still_holds(self, key: ApiKey) -> bool:
        """Whether a key that was found is still there, the same name's, and has not expired."""
        self._look()
        known = self._keys.get(key.prefix)
        return known is not None and (known.digest, known.name) == (key.digest, key.name) and self._is_unexpired(known)

    def _is_unexpired(self, key: ApiKey) -> bool:
        return key.expires_at is None or self._now() < key.expires_at

    def _look(self) -> None:
        if self._path is None or self._clock() - self._looked_at < LOOK_S:
            return
        self._looked_at = self._clock()
        if _identity(self._path) == self._seen:
            return
        try:
            self._keys = self._read(self._path)
        except KeysError as error:
            log.error("the API keys stay as they were: %s", error)
        else:
            log.info("the API keys were read again: %d", len(self._keys))

    def _read(self, path: Path) -> Mapping[str, ApiKey]:
        # Before the text: what is written in between is read once more.
        self._seen = _identity(path)
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is no text"
            raise KeysError(f"the file of API keys can't be read: {reason}") from None
        return self._checked(text)

    def _checked(self, text: str) -> Mapping[str, ApiKey]:
        keys = parse_keys(text)
        for key in keys.values():
            self._check(key)
        return keys


def _identity(path: Path) -> object:
    """Differs when the file has been written or replaced."""
    try:
        status = os.stat(path)
    except OSError as error:
        return error.errno
    return status.st_mtime_ns, status.st_size, status.st_ino

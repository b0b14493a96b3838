"""`reverie key new`: makes an API key, shows it once, and keeps only its hash."""

import argparse
import os
import re
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from service.access.api_key import (
    DIGEST_FIELD,
    CostLimit,
    KeysError,
    Scope,
    new_key,
    parse_keys,
    parse_moment,
    parse_webhook,
)
from service.launcher.command_errors import KeyFileError


def add_parser(commands: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    key = commands.add_parser("key", help="make API keys for the gateway")
    actions = key.add_subparsers(required=True, metavar="ACTION")
    new = actions.add_parser(
        "new",
        help="make a key",
        description="Makes an API key. Standard output gets the key, this once; the line that is kept of it goes into "
        "the file, which a running gateway reads again by itself. To withdraw a key, delete its line.",
    )
    new.add_argument("--name", help="whose it is: keys of one name share their jobs (default: the key's own prefix)")
    new.add_argument(
        "--scope",
        type=Scope,
        choices=list(Scope),
        default=Scope.GENERATE,
        help="read: see models and the name's jobs; generate: draw too; admin: everybody's jobs and the metrics "
        "(default %(default)s)",
    )
    new.add_argument("--expires", metavar="WHEN", help="a day like 2027-01-01, or in so many days, like 90d")
    new.add_argument("--limit", metavar="S/WINDOW", help="seconds of a worker in so many seconds, like 600/3600")
    new.add_argument(
        "--webhook", metavar="URL", help="told of the ends of its jobs, where a request says nothing of it"
    )
    new.add_argument("--webhook-events", metavar="E,…", help="some of succeeded, failed, canceled (default: all)")
    new.add_argument("--file", type=Path, help="where the line goes (default: the file of REVERIE_API_KEYS)")
    new.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    file = options.file or _configured_file()
    try:
        expires_at = _expiry(options.expires) if options.expires else None
        limit = CostLimit.parse(options.limit) if options.limit else None
        if options.webhook_events and not options.webhook:
            raise ValueError("--webhook-events goes with --webhook")
        webhook = parse_webhook(options.webhook, options.webhook_events) if options.webhook else None
        key, kept = new_key(options.name, options.scope, expires_at, limit, webhook)
        if file is not None:
            append(file, kept.line())
    except ValueError as error:
        raise KeyFileError(str(error)) from None
    print(key)
    what = f"the key of {kept.name}, scope {kept.scope}; it is not shown again"
    if file is not None:
        print(f"reverie: {what}. Its line was added to {file}", file=sys.stderr)
    else:
        print(f"reverie: {what}. Put its line into REVERIE_API_KEYS or a file that it names:", file=sys.stderr)
        print(kept.line(), file=sys.stderr)
    return 0


def append(file: Path, line: str) -> None:
    """Add a line to the keys, in a file that only its owner can read if it is new."""
    try:
        before = file.read_text() if file.exists() else ""
        parse_keys(before)
        separator = "\n" if before and not before.endswith("\n") else ""
        descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        with open(descriptor, "a") as opened:
            opened.write(f"{separator}{line}\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise KeysError(f"can't add the key to {file}: {reason}") from None


def _configured_file() -> Path | None:
    source = os.environ.get("REVERIE_API_KEYS", "")
    return Path(source).expanduser() if source and DIGEST_FIELD not in source else None


def _expiry(text: str) -> datetime:
    days = re.fullmatch(r"(\d{1,5})d", text)
    moment = datetime.now(UTC).replace(microsecond=0) + timedelta(days=int(days[1])) if days else parse_moment(text)
    if moment <= datetime.now(UTC):
        raise ValueError(f"--expires {text} is over already")
    return moment

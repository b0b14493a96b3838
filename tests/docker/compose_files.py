"""Reads compose files by the rules of docker-compose 1 and the compose plugin, as far as ours need them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

ROOT = Path(__file__).parents[2]
CANNOT_BE_EXTENDED = {"links", "volumes_from", "net", "network_mode", "depends_on"}
"""docker-compose 1 refuses to extend a service that has one of these."""


def services(*files: str) -> dict[str, dict[str, Any]]:
    """The services of the files laid over each other, the services that they extend filled in."""
    found: dict[str, dict[str, Any]] = {}
    for file in files:
        for name, service in _services_of(file).items():
            found[name] = _laid_over(found.get(name, {}), _extended(service))
    return found


def _services_of(file: str) -> dict[str, dict[str, Any]]:
    read: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / file).read_text())["services"]
    return read


def _extended(service: Mapping[str, Any]) -> dict[str, Any]:
    own = {key: value for key, value in service.items() if key != "extends"}
    if "extends" not in service:
        return own
    # The path is relative to the first file's folder, which is the project's.
    base = _services_of(service["extends"]["file"])[service["extends"]["service"]]
    if refused := CANNOT_BE_EXTENDED & base.keys():
        raise ValueError(f"docker-compose 1 extends no service with {', '.join(sorted(refused))}")
    return _laid_over(base, own)


def _laid_over(base: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(base)
    for key, value in own.items():
        known = both.get(key)
        both[key] = _laid_over(known, value) if isinstance(known, Mapping) and isinstance(value, Mapping) else value
    return both

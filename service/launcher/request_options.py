"""Command-line options for the fields of `POST /generate`: one for each, whatever fields there are."""

import argparse
import json
from collections.abc import Mapping
from typing import Any

from service.schemas import GenerateRequest

ALIASES = {"class_label": ["--label"], "batch": ["-n"]}
PREFIX = "field_"
_TYPES: Mapping[type, str] = {
    bool: "boolean",
    int: "integer",
    float: "number",
    str: "string",
    list: "array",
    dict: "object",
}


def add_request_options(parser: argparse.ArgumentParser) -> None:
    schema = GenerateRequest.model_json_schema()
    for name, field in GenerateRequest.model_fields.items():
        parser.add_argument(
            f"--{name.replace('_', '-')}",
            *ALIASES.get(name, []),
            dest=PREFIX + name,
            metavar=name.upper(),
            type=_reader(_accepted(schema["properties"][name], schema)),
            help=(field.description or "").replace("%", "%%"),
        )


def request_fields_of(options: argparse.Namespace) -> dict[str, Any]:
    """What was asked for."""
    return {
        name.removeprefix(PREFIX): value
        for name, value in vars(options).items()
        if name.startswith(PREFIX) and value is not None
    }


def _accepted(schema: Mapping[str, Any], root: Mapping[str, Any]) -> frozenset[str]:
    """The JSON types that a field takes."""
    if "$ref" in schema:
        return _accepted(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root)
    parts = [*schema.get("anyOf", []), *schema.get("oneOf", []), *schema.get("allOf", [])]
    own = {schema["type"]} if "type" in schema else set()
    return frozenset(own.union(*(_accepted(part, root) for part in parts)))


def _reader(accepted: frozenset[str]) -> Any:
    """`7` is the number seven for a field that takes integers, and a text for one that takes only texts. What fits no
    type goes as it was typed: the gateway's refusal names the rule."""

    def read(text: str) -> Any:
        try:
            value = json.loads(text)
        except ValueError:
            return text
        return value if _TYPES.get(type(value)) in accepted or _is_whole(value, accepted) else text

    return read


def _is_whole(value: Any, accepted: frozenset[str]) -> bool:
    """A float may be written without a point."""
    return type(value) is int and "number" in accepted

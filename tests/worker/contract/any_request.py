"""Any request that a job can carry, made of the message's own JSON schema: fields that it gains are made too."""

from collections.abc import Mapping
from typing import Any

from hypothesis import strategies as st
from pydantic import ValidationError

from worker.contract import SamplingRequest, TextCondition

LARGE = 2**53 - 1


def any_request() -> "st.SearchStrategy[SamplingRequest]":
    schema = SamplingRequest.model_json_schema()
    return _values(schema, schema).map(_valid).filter(lambda request: request is not None)


def _valid(fields: Mapping[str, Any]) -> Any:
    """None where a rule over several fields is broken, the gateway's included: prompts stand in place of a prompt."""
    try:
        request = SamplingRequest.model_validate(fields)
    except ValidationError:
        return None
    condition = request.condition
    return None if isinstance(condition, TextCondition) and condition.prompts and condition.prompt else request


def _values(schema: Mapping[str, Any], root: Mapping[str, Any]) -> "st.SearchStrategy[Any]":
    if "$ref" in schema:
        return _values(root["$defs"][schema["$ref"].rsplit("/", 1)[-1]], root)
    if "const" in schema:
        return st.just(schema["const"])
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return st.one_of([_values(part, root) for part in schema[several]])
    match schema["type"]:
        case "null":
            return st.none()
        case "boolean":
            return st.booleans()
        case "integer":
            return st.integers(schema.get("minimum", 0), schema.get("maximum", LARGE))
        case "number":
            least = schema.get("minimum", schema.get("exclusiveMinimum", 0.0))
            return st.floats(least, schema.get("maximum", 1e6), exclude_min="exclusiveMinimum" in schema)
        case "string" if "pattern" in schema:
            return st.from_regex(schema["pattern"], fullmatch=True)
        case "string":
            return st.text(max_size=min(schema.get("maxLength", 20), 20))
        case "array" if "prefixItems" in schema:
            return st.tuples(*(_values(part, root) for part in schema["prefixItems"]))
        case "array":
            return st.lists(_values(schema["items"], root), min_size=schema.get("minItems", 0), max_size=3)
        case "object":
            return st.fixed_dictionaries({name: _values(part, root) for name, part in schema["properties"].items()})
    raise AssertionError(f"a field of a new kind: {schema}")

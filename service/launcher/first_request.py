"""What `reverie up` shows of a request: one that the default model draws well."""

import httpx
from pydantic import ValidationError

from service.client.connection import options
from service.schemas import ModelList

SEED = 7
TIMEOUT_S = 2.0


def first_request(url: str) -> dict[str, str | int]:
    """Fields of POST /generate. A prompt is among them where the gateway names an example of its default model; one
    that wants a key and is not given it by REVERIE_API_KEY names none."""
    try:
        with httpx.Client(**options(url, None, TIMEOUT_S)) as http:
            catalogue = ModelList.model_validate_json(http.get("/models").content, extra="ignore")
    except (httpx.TransportError, ValidationError):
        return {"seed": SEED}
    default = next((model for model in catalogue.models if model.name == catalogue.default), None)
    if default is None or not default.example_prompts:
        return {"seed": SEED}
    return {"prompt": default.example_prompts[0], "seed": SEED}

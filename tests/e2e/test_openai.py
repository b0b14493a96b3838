"""The `openai` package, unchanged, on the whole product."""

import base64
import io

import httpx
import numpy as np
import openai
import pytest
from PIL import Image

from tests.e2e.conftest import Stack

pytestmark = pytest.mark.slow


def test_the_openai_package_draws_the_pixels_that_the_gateways_own_api_draws(stack: Stack) -> None:
    own = stack.images(stack.finished(stack.generate(seed=7, steps=20, batch=2, class_label="3")))
    with openai.OpenAI(base_url=f"{stack.http.base_url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["digits"]
        asked = {"prompt": "3", "n": 2, "extra_body": {"seed": 7, "steps": 20}}
        inline = client.images.generate(**asked, response_format="b64_json")  # type: ignore[call-overload]
        linked = client.images.generate(**asked)  # type: ignore[call-overload]
    drawn = [base64.b64decode(image.b64_json) for image in inline.data]
    fetched = [httpx.get(image.url, trust_env=False).content for image in linked.data]
    assert [pixels(png) for png in drawn] == [pixels(png) for png in fetched] == [pixels(png) for png in own]
    with Image.open(io.BytesIO(drawn[0])) as image:
        assert f"{image.width}x{image.height}" == inline.size


def pixels(png: bytes) -> bytes:
    with Image.open(io.BytesIO(png)) as image:
        return np.asarray(image, dtype=np.uint8).tobytes()

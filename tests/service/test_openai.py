"""The OpenAI images API, asked by the `openai` package itself."""

import base64
import threading
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from service.access.api_key import Scope, new_key
from service.schemas import GenerateRequest
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import OUT_OF_MEMORY, FakeWorker
from tests.waiting import wait_until
from worker.contract import ImageFormat, LabelCondition, NoCondition, TextCondition


@pytest.fixture
def client(http: httpx.Client) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{http.base_url}/v1", api_key="none", max_retries=0, timeout=30) as client:
        yield client


def test_a_prompt_is_drawn_and_answered_with_addresses(
    client: openai.OpenAI, http: httpx.Client, worker: FakeWorker
) -> None:
    with worker.serving():
        answer = client.images.generate(prompt="a red apple", model="emoji", n=2, extra_body={"seed": 7})
    assert worker.drawn[-1].condition == TextCondition(prompt="a red apple")
    assert (worker.drawn[-1].seed, worker.drawn[-1].batch) == (7, 2)
    assert answer.data is not None
    assert [httpx.get(str(image.url), trust_env=False).content for image in answer.data] == [
        b"pixels of seed 7",
        b"pixels of seed 8",
    ]
    assert [image.b64_json for image in answer.data] == [None, None]
    assert answer.created > 1_700_000_000
    assert answer.size == "8x8"


def test_a_labels_name_is_a_prompt_for_a_model_of_labels(client: openai.OpenAI, worker: FakeWorker) -> None:
    with worker.serving():
        answer = client.images.generate(
            prompt="two", response_format="b64_json", output_format="webp", extra_body={"seed": 9, "steps": 3}
        )
    (request,) = worker.drawn
    assert (request.model, request.condition) == ("digits", LabelCondition(label=2))
    assert (request.steps, request.format) == (3, ImageFormat.WEBP)
    assert answer.data is not None
    assert [base64.b64decode(image.b64_json or "") for image in answer.data] == [b"pixels of seed 9"]


def test_an_empty_prompt_draws_without_a_condition(client: openai.OpenAI, worker: FakeWorker) -> None:
    with worker.serving():
        client.images.generate(prompt="", model="clouds", extra_body={"sampler": "ddpm"})
    assert worker.drawn[-1].condition == NoCondition()


def test_a_size_is_asked_for_in_the_apis_words(client: openai.OpenAI, worker: FakeWorker) -> None:
    with worker.serving():
        client.images.generate(prompt="one", size="16x8")  # type: ignore[arg-type,unused-ignore]
    assert (worker.drawn[-1].width, worker.drawn[-1].height) == (16, 8)


def test_what_has_no_meaning_here_is_ignored(client: openai.OpenAI, worker: FakeWorker) -> None:
    with worker.serving():
        client.images.generate(
            prompt="one", size="8x8", quality="hd", style="vivid", user="me", moderation="low", background="auto"
        )
        client.images.generate(prompt="one", size="auto", quality="low")
    assert len(worker.drawn) == 2


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"prompt": "nine"}, "prompt", "unknown; known: zero, one, two"),
        ({"prompt": "a", "model": "clouds"}, "prompt", "clouds draws without one"),
        ({"prompt": "one", "model": "nothing"}, "model", "unknown; known: digits, clouds, emoji"),
        ({"prompt": "one", "size": "9x8"}, "size", "need a multiple of 2"),
        ({"prompt": "", "model": "clouds", "size": "16x8"}, "size", "clouds draws images of 8x8 alone"),
        ({"prompt": "one", "size": "large"}, "size", "string should match pattern"),
        ({"prompt": "one", "n": 65}, "n", "need 1 <= batch <= 64"),
        ({"prompt": "one", "quality": "best"}, "quality", "input should be 'auto'"),
        ({"prompt": "one", "stream": True}, "stream", "input should be False"),
        ({"prompt": "one", "extra_body": {"steps": 0}}, "steps", "greater than or equal to 1"),
        ({"prompt": "one", "extra_body": {"batch": 2}}, "n", "is n here"),
        ({"prompt": "one", "extra_body": {"colour": "red"}}, "colour", "unknown field"),
    ],
)
def test_a_refusal_is_a_bad_request_that_names_the_parameter(
    client: openai.OpenAI, fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(openai.BadRequestError) as raised:
        client.images.generate(**fields)
    assert message in raised.value.message
    assert (raised.value.param, raised.value.code, raised.value.type) == (
        param,
        "invalid_request",
        "invalid_request_error",
    )


def test_every_further_field_of_a_request_may_be_sent(client: openai.OpenAI) -> None:
    """Only its own refusal is expected of each: none is unknown."""
    for name in GenerateRequest.model_fields:
        with pytest.raises(openai.BadRequestError) as raised:
            client.images.generate(prompt="one", extra_body={name: {"no": "such value"}})
        assert f"{name}: unknown field" not in raised.value.message


def test_a_failed_job_is_a_server_error_with_its_reason(client: openai.OpenAI, worker: FakeWorker) -> None:
    with worker.serving(error=OUT_OF_MEMORY), pytest.raises(openai.InternalServerError) as raised:
        client.images.generate(prompt="one")
    assert "need 3 GiB, 1 GiB is free" in raised.value.message
    assert (raised.value.code, raised.value.type) == ("out_of_memory", "server_error")


def test_a_full_queue_is_a_rate_limit_that_says_when_to_come_back(
    start_gateway: Callable[..., httpx.Client], worker: FakeWorker
) -> None:
    http = start_gateway(max_queue=10)
    http.post("/generate", json={"steps": 5, "batch": 1}).raise_for_status()
    url = f"{http.base_url}/v1"
    with (
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client,
        pytest.raises(openai.RateLimitError) as raised,
    ):
        client.images.generate(prompt="one", extra_body={"steps": 50})
    assert raised.value.code == "queue_full"
    assert int(raised.value.response.headers["retry-after"]) >= 1


def test_redis_away_is_an_error_that_the_client_tries_again(
    start_gateway: Callable[..., httpx.Client], worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    url = f"{start_gateway(redis_timeout_s=0.3).base_url}/v1"
    valkey.kill()
    try:
        with (
            openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client,
            pytest.raises(openai.InternalServerError) as raised,
        ):
            client.models.list()
        assert (raised.value.status_code, raised.value.code) == (503, "redis_unavailable")
        assert "retry-after" in raised.value.response.headers
    finally:
        valkey.start()


def test_a_client_that_hangs_up_cancels_its_job(http: httpx.Client, worker: FakeWorker) -> None:
    def hang_up() -> None:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{http.base_url}/v1/images/generations", json={"prompt": "one"}, timeout=0.3, trust_env=False)

    calling = threading.Thread(target=hang_up)
    calling.start()
    wait_until(lambda: worker.queue_length() == 1, "the job")
    calling.join()
    wait_until(lambda: worker.queue_length() == 0, "its cancellation")


def test_who_hung_up_may_come_back_with_the_same_key(
    start_gateway: Callable[..., httpx.Client], worker: FakeWorker
) -> None:
    """As a client does that tries again: what it hung up on goes on for it."""
    http = start_gateway(openai_wait_s=2)
    url, headers = f"{http.base_url}/v1/images/generations", {"Idempotency-Key": "mine"}

    def ask(timeout_s: float) -> httpx.Response:
        return httpx.post(url, json={"prompt": "one"}, headers=headers, timeout=timeout_s, trust_env=False)

    with pytest.raises(httpx.ReadTimeout):
        ask(0.3)
    late = ask(60)
    assert (late.status_code, late.json()["error"]["code"]) == (504, "not_done_in_time")
    assert "ask again with the same Idempotency-Key" in late.json()["error"]["message"]
    assert worker.queue_length() == 1
    with worker.serving():
        answer = ask(60)
    assert answer.status_code == 200
    assert len(worker.drawn) == 1


def test_who_would_wait_too_long_is_told_and_the_job_is_canceled(
    start_gateway: Callable[..., httpx.Client], worker: FakeWorker
) -> None:
    url = f"{start_gateway(openai_wait_s=0.1).base_url}/v1"
    with (
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client,
        pytest.raises(openai.InternalServerError) as raised,
    ):
        client.images.generate(prompt="one")
    assert (raised.value.status_code, raised.value.code) == (504, "not_done_in_time")
    assert worker.queue_length() == 0


def test_a_key_is_asked_for_in_that_form_too(start_gateway: Callable[..., httpx.Client], worker: FakeWorker) -> None:
    key, kept = new_key("me", Scope.GENERATE)
    url = f"{start_gateway(api_keys=kept.line()).base_url}/v1"
    with openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30) as client, worker.serving():
        assert client.images.generate(prompt="one").data
    with (
        openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=30) as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.models.list()
    assert raised.value.type == "authentication_error"


def test_models_are_listed(client: openai.OpenAI) -> None:
    assert [(model.id, model.object, model.owned_by) for model in client.models.list()] == [
        (name, "model", "reverie") for name in ("digits", "clouds", "emoji")
    ]
    assert client.models.retrieve("emoji").created == 1767225600
    with pytest.raises(openai.NotFoundError) as raised:
        client.models.retrieve("dall-e-3")
    assert raised.value.code == "not_found"


def test_what_is_no_request_is_refused_in_that_form_too(http: httpx.Client) -> None:
    path = "/v1/images/generations"
    for answer, status, code in (
        (http.post(path, content=b"{", headers={"content-type": "application/json"}), 400, "broken_json"),
        (http.post(path, content=b"prompt=a"), 415, "unsupported_media_type"),
        (http.get("/v1/nothing"), 404, "not_found"),
        (http.put(path, json={}), 405, "method_not_allowed"),
    ):
        assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}

"""GET /jobs/{id}/receipt, and that a receipt's request is one that the gateway takes."""

from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings

from service.admission import admit
from service.catalogue import Reading
from service.schemas import GenerateRequest
from service.settings import Settings
from tests.service.fake_worker import CASCADE, CLOUDS, DIGITS, EMOJI, NAME, REFINED, VERSION, FakeWorker
from tests.service.test_jobs import submit
from tests.worker.contract.any_request import any_request
from worker.contract import LoraInfo, SamplingRequest, WorkerStatus
from worker.contract.receipts import DERIVED, public_request, sampling_request
from worker.contract.status import EngineCounters
from worker.results.uploads import Upload

NOT_DRAWN = {"webhook"}
"""Fields of POST /generate that do not tell what is drawn."""

STYLED = EMOJI.model_copy(update={"loras": [LoraInfo(name="style", sha256="c" * 64)]})
READING = Reading(
    announced=WorkerStatus.model_validate(
        {
            "worker": NAME,
            "started_at": "2026-01-01T00:00:00Z",
            "device": "cpu",
            "dtype": "float32",
            "max_batch": 16,
            "default_model": "digits",
            "models": [DIGITS, CLOUDS, REFINED, STYLED, CASCADE],
            "counters": EngineCounters(),
        }
    ),
    live=(),
    read_at=0.0,
)

BODIES: list[dict[str, Any]] = [
    {"steps": 5, "batch": 2, "seed": 7},
    {"steps": 5, "batch": 2, "seed": 7, "class_label": "two", "guidance_scale": 2.5, "sampler": "ddpm"},
    {"steps": 5, "batch": 1, "seed": 7, "model": "emoji", "prompt": "a", "sampler": "dpmpp_2m", "format": "webp"},
    {"steps": 5, "batch": 1, "seed": 7, "model": "emoji", "prompt": "a", "negative_prompt": "b", "eta": 0.5},
    {"steps": 5, "batch": 1, "seed": 7, "model": "emoji", "prompt": "a", "guidance_scale": 1.0},
    {"steps": 5, "batch": 1, "seed": 7, "model": "emoji", "prompt": "a", "loras": [{"name": "style", "scale": 0.5}]},
    {"steps": 5, "batch": 2, "seed": 7, "model": "emoji", "prompts": ["a", "b"], "clip_skip": 1},
    {"steps": 5, "batch": 1, "seed": 7, "model": "refined", "prompt": "a", "refiner_start": 0.7},
    {"steps": 5, "batch": 1, "seed": 7, "model": "digits-x2", "upscale_steps": 4, "upscale_noise_level": 50},
    {"steps": 5, "batch": 1, "seed": 7, "width": 16, "height": 8},
    {"steps": 5, "batch": 1, "seed": 7, "sampler": "euler", "karras": True, "spacing": "trailing"},
    {"steps": 5, "batch": 1, "seed": 7, "init_image": "a" * 64, "strength": 0.6},
    {"steps": 5, "batch": 1, "seed": 7, "init_image": "a" * 64, "mask": "b" * 64, "paste_back": True},
    {"steps": 5, "batch": 1, "seed": 7, "class_label": 1, "guidance_scale": 2.0, "guidance_rescale": 0.7},
    {"steps": 5, "batch": 1, "seed": 7, "class_label": 1, "guidance_scale": 2.0, "guidance_interval": [0.2, 0.8]},
    {"steps": 5, "batch": 1, "seed": 7, "model": "clouds", "version": VERSION, "sampler": "ddpm"},
]


def admitted(body: dict[str, Any]) -> SamplingRequest:
    settings = Settings(redis_url="unix:///nowhere")
    pictures: dict[str, Upload] = {
        name: Upload(sha256=body[name], file="", width=8, height=8, size_bytes=1, ttl_s=1)
        for name in ("init_image", "mask")
        if name in body
    }
    request = admit(GenerateRequest.model_validate(body), READING, settings, pictures).request
    return request.model_copy(update={name: SamplingRequest.model_fields[name].default for name in DERIVED})


@pytest.mark.parametrize("body", BODIES)
def test_a_receipts_request_asks_for_the_same_again(body: dict[str, Any]) -> None:
    request = admitted(body)
    assert admitted(public_request(request)) == request


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(any_request())
def test_a_receipt_names_every_field_as_the_gateway_does(request: SamplingRequest) -> None:
    assert public_request(request).keys() <= GenerateRequest.model_fields.keys()


def test_a_field_that_the_gateway_gains_is_in_a_receipt() -> None:
    """Red when a field of POST /generate does not reach the receipt, or no body here has it."""
    named = {name for body in BODIES for name in public_request(admitted(body))}
    assert named == GenerateRequest.model_fields.keys() - NOT_DRAWN


def test_a_receipt_is_answered_as_it_was_written(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    refused = http.get(f"/jobs/{job_id}/receipt")
    assert (refused.status_code, refused.json()["code"]) == (409, "no_receipt")
    worker.succeed(worker.take(), receipt='{"a":1}')
    job = http.get(f"/jobs/{job_id}").json()
    assert job["links"]["receipt"] == f"/jobs/{job_id}/receipt"
    answer = http.get(job["links"]["receipt"])
    assert (answer.content, answer.headers["content-type"]) == (b'{"a":1}', "application/json")


def test_a_job_that_was_drawn_without_a_receipt_says_so(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    worker.succeed(worker.take())
    assert http.get(f"/jobs/{job_id}").json()["links"]["receipt"] is None
    assert http.get(f"/jobs/{job_id}/receipt").json()["code"] == "no_receipt"
    assert http.get(f"/jobs/{'0' * 32}/receipt").status_code == 404


def test_what_the_gateway_makes_of_a_request_is_what_an_engine_alone_does() -> None:
    for body in BODIES:
        request = admitted(body)
        assert sampling_request(public_request(request)) == request

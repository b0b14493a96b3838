"""What POST /generate promises: a validated request becomes exactly one job that the worker can read."""

import threading
from collections.abc import Callable

import httpx
from redis import Redis
from rq.job import Job

from tests.conftest import ValkeyHandle
from tests.service.fake_worker import CLOUDS, DIGITS, EMOJI, VERSION, FakeWorker, request_of
from worker.contract import (
    DEFAULT_STEPS,
    FUNCTION_NAME,
    MAX_SEED,
    PROMPT_GUIDANCE,
    Guidance,
    ImageFormat,
    LabelCondition,
    NoCondition,
    SamplerName,
    SamplingRequest,
    Spacing,
    TextCondition,
)


def test_an_accepted_request_is_a_queued_job_with_an_address(http: httpx.Client, worker: FakeWorker) -> None:
    answer = http.post("/generate", json={"seed": 7, "steps": 50, "batch": 4})
    job = answer.json()
    assert answer.status_code == 202
    assert answer.headers["Location"] == f"/jobs/{job['id']}" == job["links"]["self"] == job["links"]["cancel"]
    assert int(answer.headers["Retry-After"]) >= 1
    assert (job["status"], job["model"], job["seed"], job["steps"], job["batch"]) == ("queued", "digits", 7, 50, 4)
    assert job["progress"] == {"step": 0, "steps": 50}
    assert job["position"] == 0
    assert job["images"] == []
    assert http.get(answer.headers["Location"]).json() == job
    assert worker.queue_length() == 1


def test_the_worker_gets_every_field_as_asked(http: httpx.Client, worker: FakeWorker) -> None:
    asked = {
        "seed": 11,
        "steps": 20,
        "batch": 2,
        "model": "digits",
        "version": VERSION,
        "sampler": "ddim",
        "eta": 0.5,
        "spacing": "trailing",
        "class_label": "two",
        "guidance_scale": 3,
        "guidance_rescale": 0.5,
        "guidance_interval": [0.25, 0.75],
        "fast": True,
        "format": "webp",
    }
    shown = http.post("/generate", json=asked).json()
    job = worker.take()
    assert request_of(job) == SamplingRequest(
        seed=11,
        steps=20,
        batch=2,
        model="digits",
        version=VERSION,
        sampler=SamplerName.DDIM,
        eta=0.5,
        spacing=Spacing.TRAILING,
        condition=LabelCondition(label=2),
        guidance=Guidance(scale=3.0, rescale=0.5, interval=(0.25, 0.75)),
        fast=True,
        format=ImageFormat.WEBP,
    )
    assert job.func_name == FUNCTION_NAME
    assert job.retries_left == 3
    assert (shown["class_label"], shown["label"]) == (2, "two")
    assert (shown["guidance_interval"], shown["fast"]) == ([0.25, 0.75], True)


def test_a_request_that_names_no_sampler_gets_the_one_that_the_version_ships_with(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    (shipped,) = DIGITS.versions
    older = shipped.model_copy(update={"version": "000000001-3f2a9c1b", "sampler": SamplerName.PLMS})
    newer = shipped.model_copy(update={"sampler": SamplerName.EULER, "karras": True})
    worker.announce(models=(DIGITS.model_copy(update={"name": "shipped", "versions": [older, newer]}),))
    http, body = start_gateway(), {"model": "shipped", "steps": 5, "batch": 1, "seed": 1}

    shown = http.post("/generate", json=body).json()
    assert (shown["sampler"], shown["karras"], shown["progress"]["steps"]) == ("euler", True, 5)
    assert http.post("/generate", json={**body, "karras": False}).json()["karras"] is False
    # Karras' noise levels come along to a sampler that can walk them.
    others = [http.post("/generate", json={**body, "sampler": name}).json() for name in ("dpmpp_2m", "ddim")]
    assert [(job["sampler"], job["karras"]) for job in others] == [("dpmpp_2m", True), ("ddim", False)]
    # PLMS calls the network once more than it steps.
    shown = http.post("/generate", json={**body, "version": older.version}).json()
    assert (shown["sampler"], shown["steps"], shown["progress"]["steps"]) == ("plms", 5, 6)


def test_what_a_request_does_not_name_is_as_the_version_was_published(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    (current,) = EMOJI.versions
    older = current.model_copy(update={"version": "000000001-3f2a9c1b"})
    own = {"sampler": SamplerName.DDPM, "steps": 25, "guidance_scale": 4.0}
    emoji = EMOJI.model_copy(update={"versions": [older, current.model_copy(update=own)]})
    worker.announce((DIGITS, emoji), default_model="emoji")
    http = start_gateway()

    def drawn(**body: object) -> tuple[str, str, int, float, int]:
        shown = http.post("/generate", json=body).raise_for_status().json()
        assert request_of(worker.take()).model == shown["model"]
        return shown["model"], shown["sampler"], shown["steps"], shown["guidance_scale"], shown["batch"]

    assert drawn(prompt="blue apple") == ("emoji", "ddpm", 25, 4.0, 1)
    assert drawn() == ("emoji", "ddpm", 25, 1.0, 1), "nothing to be guided by"
    assert drawn(prompt="blue apple", version=older.version) == ("emoji", "ddim", DEFAULT_STEPS, PROMPT_GUIDANCE, 1)
    asked = {"sampler": "ddim", "steps": 7, "guidance_scale": 2.0, "batch": 3}
    assert drawn(prompt="blue apple", **asked) == ("emoji", "ddim", 7, 2.0, 3)
    assert drawn(model="digits") == ("digits", "ddim", DEFAULT_STEPS, 1.0, 1)


def test_a_version_that_is_published_unguided_takes_no_negative_prompt_without_a_scale(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    (current,) = EMOJI.versions
    turbo = EMOJI.model_copy(update={"versions": [current.model_copy(update={"guidance_scale": 1.0})]})
    worker.announce((turbo,), default_model="emoji")
    http, body = start_gateway(), {"prompt": "blue apple", "negative_prompt": "red"}
    refused = http.post("/generate", json=body).json()
    assert [error["field"] for error in refused["errors"]] == ["negative_prompt"]
    assert http.post("/generate", json={**body, "guidance_scale": 2.0}).status_code == 202


def test_no_more_steps_are_taken_unasked_than_the_model_was_trained_with(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    worker.announce((CLOUDS.model_copy(update={"num_train_timesteps": 20}),), default_model="clouds")
    assert start_gateway().post("/generate", json={"sampler": "ddpm"}).json()["steps"] == 20


def test_the_worker_gets_prompt_negative_prompt_and_guidance(http: httpx.Client, worker: FakeWorker) -> None:
    asked = {"steps": 20, "batch": 1, "model": "emoji", "prompt": "a cat\u200d 🐱 ", "negative_prompt": "blurry"}
    shown = http.post("/generate", json=asked).json()
    request = request_of(worker.take())
    assert request.condition == TextCondition(prompt="a cat\u200d 🐱 ", negative_prompt="blurry")
    assert request.guidance == Guidance(scale=PROMPT_GUIDANCE)
    assert (shown["prompt"], shown["negative_prompt"]) == (asked["prompt"], "blurry")
    assert (shown["guidance_scale"], shown["class_label"], shown["warnings"]) == (PROMPT_GUIDANCE, None, [])
    http.post("/generate", json={"steps": 20, "batch": 1, "model": "emoji", "prompt": "", "guidance_scale": 0})
    request = request_of(worker.take())
    assert (request.condition, request.guidance.scale) == (TextCondition(prompt=""), 0)
    http.post("/generate", json={"steps": 20, "batch": 1, "model": "emoji"})
    request = request_of(worker.take())
    assert (request.condition, request.guidance.scale) == (NoCondition(), 1)


def test_the_worker_gets_a_prompt_for_each_image(http: httpx.Client, worker: FakeWorker) -> None:
    asked = {"steps": 20, "batch": 2, "model": "emoji", "prompts": ["a cat", "a dog"], "clip_skip": 1}
    shown = http.post("/generate", json=asked).json()
    assert request_of(worker.take()).condition == TextCondition(prompts=("a cat", "a dog"), clip_skip=1)
    assert (shown["prompt"], shown["prompts"], shown["clip_skip"]) == (None, ["a cat", "a dog"], 1)
    del asked["batch"]
    assert http.post("/generate", json=asked).json()["batch"] == 2, "as many as there are prompts"


def test_the_worker_gets_the_size_and_what_it_costs(http: httpx.Client, worker: FakeWorker) -> None:
    asked = {"steps": 20, "batch": 3, "width": 10, "height": 16}
    shown = http.post("/generate", json=asked).json()
    request = request_of(worker.take())
    assert (request.width, request.height, request.area) == (10, 16, 3), "160 pixels are 2.5 images of 8x8"
    assert (request.rows, request.row_steps) == (9, 180)
    assert (shown["width"], shown["height"]) == (10, 16)
    http.post("/generate", json={"steps": 20, "batch": 3, "height": 4})
    request = request_of(worker.take())
    assert (request.width, request.height, request.area) == (None, 4, 1)


def test_the_operator_limits_the_pixels_but_never_a_models_own_size(
    start_gateway: Callable[..., httpx.Client], worker: FakeWorker
) -> None:
    http = start_gateway(max_pixels=16)
    body = {"steps": 1, "batch": 1}
    assert http.post("/generate", json={**body, "width": 4, "height": 4}).status_code == 202
    assert http.post("/generate", json={**body, "width": 8, "height": 8}).status_code == 202
    refused = http.post("/generate", json={**body, "width": 8, "height": 10})
    assert refused.json()["errors"][0]["rule"] == "need width x height <= 16, got 8x10"


def test_the_job_tells_what_was_done_otherwise_than_asked(http: httpx.Client, worker: FakeWorker) -> None:
    job = http.post("/generate", json={"steps": 1, "batch": 1, "model": "emoji", "prompt": "a"}).json()
    worker.succeed(worker.take(), warnings=["prompt: emoji reads 14 tokens of it, lost: b"])
    assert http.get(f"/jobs/{job['id']}").json()["warnings"] == ["prompt: emoji reads 14 tokens of it, lost: b"]


def test_a_label_may_be_an_index_or_a_name(http: httpx.Client) -> None:
    by_index = http.post("/generate", json={"steps": 1, "batch": 1, "class_label": 1}).json()
    by_name = http.post("/generate", json={"steps": 1, "batch": 1, "class_label": "one"}).json()
    assert (by_index["class_label"], by_index["label"]) == (by_name["class_label"], by_name["label"]) == (1, "one")


def test_a_seed_that_is_not_given_is_drawn_and_named(http: httpx.Client, worker: FakeWorker) -> None:
    seeds = {http.post("/generate", json={"steps": 1, "batch": 64}).json()["seed"] for _ in range(8)}
    assert len(seeds) == 8
    assert all(0 <= seed <= MAX_SEED - 63 for seed in seeds)
    assert {request_of(worker.take()).seed for _ in range(8)} == seeds


def test_the_largest_seed_is_accepted_whole(http: httpx.Client, worker: FakeWorker) -> None:
    assert http.post("/generate", json={"seed": MAX_SEED, "steps": 1, "batch": 1}).json()["seed"] == MAX_SEED
    assert request_of(worker.take()).seed == MAX_SEED


def test_prefer_wait_answers_200_with_the_ended_job(http: httpx.Client, worker: FakeWorker) -> None:
    answers: list[httpx.Response] = []
    body = {"steps": 3, "batch": 1}
    client = threading.Thread(
        target=lambda: answers.append(http.post("/generate", json=body, headers={"Prefer": "wait=20"}))
    )
    client.start()
    while worker.queue_length() == 0:
        assert client.is_alive()
    worker.succeed(worker.take())
    client.join()
    (answer,) = answers
    assert answer.status_code == 200
    assert answer.headers["Preference-Applied"] == "wait=20"
    assert answer.json()["status"] == "succeeded"


def test_prefer_wait_answers_202_when_the_job_takes_longer(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"steps": 3, "batch": 1}, headers={"Prefer": "respond-async, wait=1"})
    assert answer.status_code == 202
    assert answer.json()["status"] == "queued"


def test_a_preference_that_is_not_understood_is_ignored(http: httpx.Client) -> None:
    answer = http.post("/generate", json={"steps": 3, "batch": 1}, headers={"Prefer": "wait=soon, handling=strict"})
    assert answer.status_code == 202
    assert "Preference-Applied" not in answer.headers


def test_a_waiting_job_has_no_expiry_and_rq_sees_it(http: httpx.Client, valkey: ValkeyHandle) -> None:
    job_id = http.post("/generate", json={"steps": 3, "batch": 1}).json()["id"]
    client: Redis = valkey.client
    assert client.ttl(Job.key_for(job_id)) == -1
    assert client.smembers("rq:queues") == {b"rq:queue:reverie"}


def test_the_batch_limit_is_a_setting(worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> None:
    http = start_gateway(max_images=2)
    assert http.post("/generate", json={"steps": 1, "batch": 2}).status_code == 202
    assert http.post("/generate", json={"steps": 1, "batch": 3}).status_code == 422
    schema = http.get("/openapi.json").json()["components"]["schemas"]["GenerateRequest"]
    assert schema["properties"]["batch"]["maximum"] == 2


def test_a_model_without_a_loaded_version_is_503_until_it_has_one(own_http: httpx.Client, worker: FakeWorker) -> None:
    broken = DIGITS.model_copy(update={"name": "later", "version": None, "reload_error": "hash differs"})
    worker.announce(models=(broken,), default_model="later")
    answer = own_http.post("/generate", json={"steps": 1, "batch": 1})
    assert answer.status_code == 503
    assert answer.json()["code"] == "model_not_loaded"
    assert "hash differs" in answer.json()["detail"]
    assert "Retry-After" in answer.headers


def test_before_any_worker_has_announced_itself_the_answer_is_503(start_gateway: Callable[..., httpx.Client]) -> None:
    answer = start_gateway().post("/generate", json={"steps": 1, "batch": 1})
    assert answer.status_code == 503
    assert answer.json()["code"] == "no_worker"
    assert "Retry-After" in answer.headers


def test_a_version_is_served_from_the_moment_that_it_is_announced(http: httpx.Client, worker: FakeWorker) -> None:
    body = {"seed": 1, "steps": 5, "batch": 1}
    (first,) = DIGITS.versions
    second = first.model_copy(update={"version": "000013000-3f2a9c1b"})
    answer = http.post("/generate", json={**body, "version": first.version})
    assert answer.status_code == 202, answer.text
    worker.announce(models=(DIGITS.model_copy(update={"versions": [first, second]}),))
    answer = http.post("/generate", json={**body, "version": second.version})
    assert (answer.status_code, answer.json().get("version")) == (202, second.version), answer.text

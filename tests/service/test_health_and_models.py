"""What /livez, /readyz, /models and / say."""

import httpx

from tests.conftest import ValkeyHandle
from tests.service.fake_worker import CLOUDS, DIGITS, EMOJI, NAME, VERSION, FakeWorker
from tests.waiting import wait_until
from worker.contract import MemoryUse, ModelInfo
from worker.contract.live_workers import ANNOUNCE


def test_ready_means_that_a_worker_is_alive_with_a_model_loaded(http: httpx.Client) -> None:
    answer = http.get("/readyz")
    assert answer.status_code == 200
    assert answer.json() == {"status": "ready", "workers": 1, "models": ["clouds", "digits", "emoji"]}


def test_not_ready_says_what_is_missing(own_http: httpx.Client, worker: FakeWorker) -> None:
    worker.announce(models=(DIGITS.model_copy(update={"version": None}),))
    wait_until(lambda: own_http.get("/readyz").status_code == 503, "a new reading")
    assert own_http.get("/readyz").json()["code"] == "no_model"
    worker.die()
    wait_until(lambda: own_http.get("/readyz").json()["code"] == "no_worker", "a new reading")
    answer = own_http.get("/readyz")
    assert answer.headers["Content-Type"] == "application/problem+json"
    assert "Retry-After" in answer.headers
    assert own_http.get("/livez").json() == {"status": "alive"}


def test_models_stay_known_while_no_worker_is_up(own_http: httpx.Client, worker: FakeWorker) -> None:
    worker.die()
    listed = own_http.get("/models").json()
    assert listed["default"] == "digits"
    assert [ModelInfo.model_validate(model) for model in listed["models"]] == [DIGITS, CLOUDS, EMOJI]
    assert own_http.post("/generate", json={"steps": 1, "batch": 1}).status_code == 202


def test_one_model_tells_versions_labels_and_size(http: httpx.Client) -> None:
    model = http.get("/models/digits").json()
    assert (model["dtype"], model["exact"], model["form"]) == ("bfloat16", True, "one_by_one")
    assert (model["version"], model["labels"], model["width"]) == (VERSION, ["zero", "one", "two"], 8)
    assert http.get("/models/nobody").status_code == 404
    assert {each["name"]: each["takes"] for each in http.get("/models").json()["models"]} == {
        "digits": "class_label",
        "clouds": "nothing",
        "emoji": "prompt",
    }


def test_models_tell_what_memory_each_worker_has_given_them(own_http: httpx.Client, worker: FakeWorker) -> None:
    held = MemoryUse(weight_bytes=700, spare_bytes=50, recording_bytes=3, workspace_bytes=2, feature_bytes=1)
    worker.announce(models=(DIGITS.model_copy(update={"memory_bytes": 700}),), memory=held)
    wait_until(lambda: own_http.get("/models/digits").json()["memory_bytes"] == 700, "a new reading")
    assert own_http.get("/models").json()["memory"] == {NAME: held.model_dump()}


def test_a_reload_is_seen_soon(own_http: httpx.Client, worker: FakeWorker) -> None:
    assert own_http.get("/models/digits").json()["reload_error"] is None
    worker.announce(models=(DIGITS.model_copy(update={"reload_error": "hash differs"}),))
    wait_until(
        lambda: own_http.get("/models/digits").json()["reload_error"] == "hash differs",
        "a new reading",
    )


def test_a_status_that_can_not_be_read_hides_no_other_worker(
    own_http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    valkey.client.register_script(ANNOUNCE)(args=["of-another-release", '{"unknown": 1}', 60, 60])
    worker.announce()
    assert own_http.get("/readyz").json()["workers"] == 1
    assert own_http.get("/models/digits").status_code == 200


def test_the_front_page_leads_to_the_documentation(http: httpx.Client) -> None:
    answer = http.get("/")
    assert answer.headers["Content-Type"].startswith("text/html")
    assert 'href="/docs"' in answer.text
    assert http.get("/docs").status_code == 200

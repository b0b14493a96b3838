"""The exact cache: an equal request is answered with what was drawn before, and two in flight are drawn once."""

import io
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import pytest
from PIL import Image

from tests.conftest import ValkeyHandle
from tests.service.drawing_worker import DrawingWorker, pixels_of, sha256_of
from tests.service.fake_worker import DIGITS, VERSION, FakeWorker
from tests.waiting import wait_until
from worker.contract import ModelInfo
from worker.contract.keys import TOTALS_KEY

NEXT = "000013000-00000000"
BODY: dict[str, Any] = {"seed": 7, "steps": 10, "batch": 2}


@pytest.fixture
def drawing(valkey: ValkeyHandle) -> Iterator[DrawingWorker]:
    with DrawingWorker(valkey) as worker:
        yield worker


@pytest.fixture
def http(drawing: DrawingWorker, start_gateway: Callable[..., httpx.Client]) -> httpx.Client:
    return start_gateway()


def post(http: httpx.Client, headers: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
    answer = http.post("/generate", json=BODY | changes, headers=headers)
    assert answer.status_code in (200, 202), answer.text
    job: dict[str, Any] = answer.json()
    assert (answer.status_code == 200) == (job["status"] == "succeeded")
    return job


def job_of(http: httpx.Client, job: dict[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = http.get(f"/jobs/{job['id']}").json()
    return document


def hashes(job: dict[str, Any]) -> list[str]:
    return [image["sha256"] for image in job["images"]]


def total(valkey: ValkeyHandle, name: str) -> int:
    return int(valkey.client.hget(TOTALS_KEY, f"{name}:digits") or 0)


def test_an_equal_request_is_answered_at_once_with_the_same_pixels(
    http: httpx.Client, drawing: DrawingWorker, valkey: ValkeyHandle
) -> None:
    first = post(http)
    drawing.draw_all()
    cached = post(http)
    assert (cached["status"], cached["cached"], cached["id"] != first["id"]) == ("succeeded", True, True)
    drawn = job_of(http, first)
    assert (drawn["status"], drawn["cached"]) == ("succeeded", False)
    same = ("version", "weights_sha256", "dtype", "exact", "seed", "steps", "sampler", "format", "warnings")
    assert {name: cached[name] for name in same} == {name: drawn[name] for name in same}
    files = [[http.get(image["url"]).content for image in job["images"]] for job in (drawn, cached)]
    assert files[0] == files[1]
    with Image.open(io.BytesIO(files[1][1])) as image:
        assert image.tobytes() == pixels_of(8, VERSION).tobytes()
    assert cached["finished_at"] >= cached["created_at"]
    assert drawing.drawn == 1
    assert [total(valkey, name) for name in ("submitted", "succeeded", "cached")] == [2, 2, 1]
    assert 'reverie_jobs_cached_total{model="digits"} 1.0' in http.get("/metrics").text


def test_a_cached_answer_has_the_pixels_of_a_fresh_draw(http: httpx.Client, drawing: DrawingWorker) -> None:
    post(http)
    drawing.draw_all()
    cached = post(http)
    anew = post(http, headers={"Cache-Control": "no-cache"})
    assert (anew["status"], anew["cached"]) == ("queued", False)
    drawing.draw_all()
    assert drawing.drawn == 2
    assert hashes(job_of(http, anew)) == hashes(cached) == [sha256_of(7), sha256_of(8)]


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 8},
        {"steps": 11},
        {"batch": 1},
        {"sampler": "ddpm"},
        {"eta": 0.5},
        {"spacing": "trailing"},
        {"class_label": 1},
        {"class_label": 1, "guidance_scale": 2.0},
        {"class_label": 1, "guidance_scale": 2.0, "guidance_interval": [0.2, 0.8]},
        {"fast": True},
        {"format": "webp"},
    ],
)
def test_every_input_counts(changes: dict[str, Any], http: httpx.Client, drawing: DrawingWorker) -> None:
    post(http)
    waiting = post(http, **changes)
    assert waiting["status"] == "queued"
    drawing.draw_all()
    assert drawing.drawn == 2, "it followed another request"
    assert post(http, **changes)["cached"]
    assert post(http, **{**changes, "steps": 12})["status"] == "queued"


def test_a_request_that_names_the_current_version_finds_what_was_drawn_without_a_name(
    http: httpx.Client, drawing: DrawingWorker
) -> None:
    post(http)
    drawing.draw_all()
    assert post(http, version=VERSION)["cached"]
    assert post(http, class_label=None)["cached"]


def test_without_a_seed_a_request_is_drawn_and_then_found_by_the_seed_that_it_got(
    http: httpx.Client, drawing: DrawingWorker
) -> None:
    jobs = [http.post("/generate", json={"steps": 10, "batch": 1}).json() for _ in range(2)]
    drawing.draw_all()
    assert drawing.drawn == 2
    assert post(http, batch=1, seed=jobs[0]["seed"])["cached"]


def test_equal_requests_in_flight_are_drawn_once(
    http: httpx.Client, drawing: DrawingWorker, valkey: ValkeyHandle
) -> None:
    first, second = post(http), post(http)
    job = drawing.claim()
    assert job is not None
    third = post(http)
    assert [job_of(http, one)["status"] for one in (first, second, third)] == ["running", "queued", "queued"]
    assert drawing.claim() is None
    drawing.succeed(job)
    ended = [job_of(http, one) for one in (first, second, third)]
    assert [(one["status"], one["cached"]) for one in ended] == [("succeeded", False), *[("succeeded", True)] * 2]
    assert {tuple(hashes(one)) for one in ended} == {(sha256_of(7), sha256_of(8))}
    assert [http.get(one["images"][0]["url"]).status_code for one in ended] == [200] * 3
    assert (drawing.drawn, total(valkey, "succeeded"), total(valkey, "cached")) == (1, 3, 2)
    assert not [key for key in valkey.all_keys() if "drawing" in key or "follow" in key]


@pytest.mark.parametrize("end", ["fails", "canceled while it waits", "canceled while it runs"])
def test_when_the_first_draws_nothing_the_second_does_and_the_others_follow_it(
    end: str, http: httpx.Client, drawing: DrawingWorker, valkey: ValkeyHandle
) -> None:
    first, second, third = (post(http) for _ in range(3))
    job = None if end == "canceled while it waits" else drawing.claim()
    if end == "fails":
        assert job is not None
        drawing.fail(job)
    else:
        assert http.delete(f"/jobs/{first['id']}").status_code == 200
    assert job_of(http, first)["status"] == ("failed" if end == "fails" else "canceled")
    fourth = post(http)
    job = drawing.claim()
    assert job is not None
    assert job.job_id == second["id"]
    assert drawing.claim() is None
    drawing.succeed(job)
    ended = [job_of(http, one) for one in (second, third, fourth)]
    assert [(one["status"], one["cached"]) for one in ended] == [("succeeded", False), *[("succeeded", True)] * 2]
    assert not [key for key in valkey.all_keys() if "drawing" in key or "follow" in key]


def test_a_try_that_fails_for_now_keeps_its_followers(http: httpx.Client, drawing: DrawingWorker) -> None:
    first, second = post(http), post(http)
    job = drawing.claim()
    assert job is not None
    drawing.fail(job, retryable=True)
    assert [job_of(http, one)["status"] for one in (first, second)] == ["queued"] * 2
    drawing.draw_all()
    assert drawing.drawn == 1
    assert [job_of(http, one)["status"] for one in (first, second)] == ["succeeded"] * 2


def test_a_follower_can_be_canceled_and_nobody_else_notices(http: httpx.Client, drawing: DrawingWorker) -> None:
    first, second, third = (post(http) for _ in range(3))
    http.delete(f"/jobs/{second['id']}")
    drawing.draw_all()
    assert [job_of(http, one)["status"] for one in (first, second, third)] == ["succeeded", "canceled", "succeeded"]
    assert drawing.drawn == 1


def test_the_followers_of_a_job_that_somebody_deleted_are_drawn(
    http: httpx.Client, drawing: DrawingWorker, valkey: ValkeyHandle
) -> None:
    first, second = post(http), post(http)
    valkey.client.delete(f"rq:job:{first['id']}")
    valkey.client.lrem("rq:queue:reverie", 0, first["id"])
    drawing.leases.recover(stranded_s=60)
    drawing.draw_all()
    assert job_of(http, second)["status"] == "succeeded"


def test_after_a_reload_a_request_gets_the_version_that_is_current_now(
    http: httpx.Client, drawing: DrawingWorker
) -> None:
    before = post(http)
    drawing.draw_all()
    assert post(http)["cached"]
    drawing.go_live(NEXT)
    after = post(http)  # the gateway has read the workers a moment ago
    assert (after["status"], after["cached"]) == ("queued", False)
    drawing.draw_all()
    assert job_of(http, after)["version"] == NEXT
    assert hashes(job_of(http, after)) == [sha256_of(7, NEXT), sha256_of(8, NEXT)]
    by_name = post(http, version=VERSION)
    assert by_name["cached"]
    assert hashes(by_name) == hashes(job_of(http, before))
    drawing.go_live(VERSION)
    wait_until(lambda: hashes(post(http)) == hashes(by_name), "the workers to be read again")


def test_nobody_follows_a_job_that_runs_on_the_version_before(http: httpx.Client, drawing: DrawingWorker) -> None:
    old = post(http)
    job = drawing.claim()
    assert job is not None
    drawing.go_live(NEXT)
    new = post(http)
    drawing.succeed(job)
    drawing.draw_all()
    assert [job_of(http, one)["version"] for one in (old, new)] == [VERSION, NEXT]


def test_a_request_that_names_a_version_follows_none_that_leaves_it_open(
    http: httpx.Client, drawing: DrawingWorker
) -> None:
    """The other may yet begin on a newer one."""
    left_open, named = post(http), post(http, version=VERSION)
    drawing.go_live(NEXT)
    drawing.draw_all()
    assert [job_of(http, one)["version"] for one in (left_open, named)] == [NEXT, VERSION]


def test_where_pixels_are_not_exact_nothing_is_taken_from_the_cache(
    http: httpx.Client, drawing: DrawingWorker, start_gateway: Callable[..., httpx.Client], valkey: ValkeyHandle
) -> None:
    drawing.publish(DIGITS.model_copy(update={"exact": False}))
    http = start_gateway()
    jobs = [post(http), post(http)]
    while (job := drawing.claim()) is not None:
        drawing.succeed(job, exact=False)
    assert drawing.drawn == 2
    assert not [key for key in valkey.all_keys() if ":drawn:" in key]
    assert post(http)["status"] == "queued"
    assert [job_of(http, one)["cached"] for one in jobs] == [False, False]


@pytest.mark.parametrize(
    "change", [{"dtype": "float32"}, {"form": "direct"}, {"device": "cuda:0"}, {"arithmetic": "of another processor"}]
)
def test_what_another_dtype_form_device_or_processor_drew_is_not_taken(
    change: dict[str, str], valkey: ValkeyHandle, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway()
    with DrawingWorker(valkey, change.get("device", "cpu"), change.get("arithmetic", "")) as worker:
        of_model = {name: value for name, value in change.items() if name in ModelInfo.model_fields}
        worker.model = DIGITS.model_copy(update=of_model)
        FakeWorker(valkey.client).announce()
        post(http)
        worker.draw_all()
        assert post(http)["status"] == "queued"


def test_two_workers_that_compute_in_different_ways_share_no_pixels(
    http: httpx.Client, drawing: DrawingWorker, valkey: ValkeyHandle
) -> None:
    post(http)
    drawing.draw_all()
    FakeWorker(valkey.client).announce(models=(DIGITS.model_copy(update={"dtype": "float32"}),), name="another")
    wait_until(lambda: post(http)["status"] == "queued", "the workers to be read again")


def test_what_is_cached_expires_with_its_files_and_a_hit_keeps_it_on(
    http: httpx.Client, drawing: DrawingWorker, valkey: ValkeyHandle
) -> None:
    first = post(http)
    drawing.draw_all()
    keys = valkey.file_keys(first["id"])
    for key in keys:
        valkey.client.expire(key, 100)
    cached = post(http)
    assert all(3500 < valkey.client.ttl(key) <= 3600 for key in keys)
    assert 3500 < valkey.client.ttl(f"rq:job:{cached['id']}") <= 3600
    valkey.client.delete(f"rq:job:{first['id']}")  # its own time is over; what it drew is the other's too
    assert post(http)["cached"]
    valkey.client.delete(keys[0])
    assert post(http)["status"] == "queued"


def test_a_full_queue_refuses_no_answer_that_costs_nothing(
    drawing: DrawingWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway(max_queue_jobs=1)
    post(http)
    drawing.draw_all()
    post(http, seed=100)
    assert http.post("/generate", json=BODY | {"seed": 101}).status_code == 429
    assert post(http)["cached"]
    assert post(http, seed=100)["status"] == "queued"


def test_a_cached_answer_has_its_idempotency_key(http: httpx.Client, drawing: DrawingWorker) -> None:
    post(http)
    drawing.draw_all()
    twice = [post(http, headers={"Idempotency-Key": "a"}) for _ in range(2)]
    assert twice[0]["id"] == twice[1]["id"]
    assert http.post("/generate", json=BODY | {"seed": 1}, headers={"Idempotency-Key": "a"}).status_code == 422

"""What GET /jobs/{id}/images/{i} promises: the stored bytes, cacheable as long as they are kept."""

from collections.abc import Callable
from email.utils import parsedate_to_datetime

import httpx
import pytest

from tests.conftest import ValkeyHandle
from tests.service.fake_worker import OUT_OF_MEMORY, FakeWorker


def submit(http: httpx.Client, **changes: object) -> str:
    return str(http.post("/generate", json={"seed": 5, "steps": 10, "batch": 2, **changes}).json()["id"])


@pytest.mark.parametrize("image_format", ["png", "webp"])
def test_each_image_is_the_stored_bytes_with_their_type(
    image_format: str, http: httpx.Client, worker: FakeWorker
) -> None:
    job_id = submit(http, format=image_format)
    stored = worker.succeed(worker.take())
    fetched = [http.get(f"/jobs/{job_id}/images/{i}") for i in range(2)]
    assert [answer.content for answer in fetched] == stored
    assert {answer.headers["Content-Type"] for answer in fetched} == {f"image/{image_format}"}
    assert fetched[0].headers["ETag"] != fetched[1].headers["ETag"]


def test_the_etag_stands_for_the_pixels_and_saves_the_bytes(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    worker.succeed(worker.take())
    url = f"/jobs/{job_id}/images/1"
    etag = http.get(url).headers["ETag"]
    assert http.get(f"/jobs/{job_id}").json()["images"][1]["sha256"] in etag
    for header in (etag, f'"other", W/{etag}', "*"):
        answer = http.get(url, headers={"If-None-Match": header})
        assert answer.status_code == 304
        assert answer.content == b""
        assert answer.headers["ETag"] == etag
    assert http.get(url, headers={"If-None-Match": '"other"'}).status_code == 200


def test_the_bytes_of_an_image_that_the_client_has_stay_in_redis(
    http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    job_id = submit(http)
    worker.succeed(worker.take())
    url = f"/jobs/{job_id}/images/1"
    etag = http.get(url).headers["ETag"]
    with valkey.client.monitor() as monitor:  # type: ignore[no-untyped-call]  # redis-py has no types for it
        assert http.get(url, headers={"If-None-Match": etag}).status_code == 304
        valkey.client.echo("end")
        asked = list(iter(lambda: monitor.next_command()["command"], "ECHO end"))
    _, key = valkey.file_keys(job_id)
    assert f"PTTL {key}" in asked
    assert f"GET {key}" not in asked
    valkey.client.delete(key)
    assert http.get(url, headers={"If-None-Match": etag}).status_code == 410


def test_the_same_pixels_in_another_format_have_another_etag(http: httpx.Client, worker: FakeWorker) -> None:
    etags, hashes = set(), set()
    for image_format in ("png", "webp"):
        job_id = submit(http, format=image_format)
        worker.succeed(worker.take())
        etags.add(http.get(f"/jobs/{job_id}/images/0").headers["ETag"])
        hashes.add(http.get(f"/jobs/{job_id}").json()["images"][0]["sha256"])
    assert (len(etags), len(hashes)) == (2, 1)


def test_caches_may_keep_an_image_just_as_long_as_we_do(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway(result_ttl_s=500)
    job_id = submit(http)
    worker.succeed(worker.take())
    answer = http.get(f"/jobs/{job_id}/images/0")
    max_age_s = int(answer.headers["Cache-Control"].split("max-age=")[1].split(",")[0])
    assert 400 <= max_age_s <= 500
    left = parsedate_to_datetime(answer.headers["Expires"]) - parsedate_to_datetime(answer.headers["Date"])
    assert abs(left.total_seconds() - max_age_s) <= 2


def test_before_the_end_an_image_is_409(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    assert http.get(f"/jobs/{job_id}/images/0").status_code == 409
    job = worker.take()
    assert "running" in http.get(f"/jobs/{job_id}/images/0").json()["detail"]
    worker.fail(job, OUT_OF_MEMORY.model_dump_json())
    answer = http.get(f"/jobs/{job_id}/images/0")
    assert answer.status_code == 409
    assert "failed" in answer.json()["detail"]


@pytest.mark.parametrize("index", [2, -1, 10**30])
def test_an_index_that_the_job_does_not_have_is_404(index: int, http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    assert http.get(f"/jobs/{job_id}/images/{index}").status_code == 404
    worker.succeed(worker.take())
    answer = http.get(f"/jobs/{job_id}/images/{index}")
    assert answer.status_code == 404
    assert "0 to 1" in answer.json()["detail"]


def test_an_image_that_went_before_its_job_is_410(http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle) -> None:
    job_id = submit(http)
    worker.succeed(worker.take())
    valkey.client.delete(valkey.file_keys(job_id)[0])
    assert http.get(f"/jobs/{job_id}/images/0").status_code == 410
    assert http.get(f"/jobs/{job_id}/images/1").status_code == 200

"""What GET /jobs/{id}/events?preview=1 promises: pictures on the way, asked for only while somebody watches."""

import io
import json
from base64 import b64decode

import httpx
from PIL import Image

from tests.conftest import ValkeyHandle
from tests.service.event_source import events_of, follow
from tests.service.fake_worker import FakeWorker
from tests.service.test_jobs import poll, submit
from worker.contract.keys import preview_asked_key, preview_key

PREVIEWS = "?preview=1"


def test_progress_carries_the_newest_preview_of_each_image(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    with follow(http, events_of(job_id) + PREVIEWS) as source:
        assert json.loads(next(source.events).data)["previews"] == []
        job = worker.take()
        worker.report(job, 4)
        while (event := next(source.events)).id != "running-4":
            pass
        worker.preview(job, 4)
        event = next(source.events)
        assert (event.name, event.id) == ("progress", "running-4.4"), "the same progress, another event"
        (preview,) = json.loads(event.data)["previews"]
        assert (preview["index"], preview["step"]) == (0, 4)
        kind, _, data = preview["url"].partition(",")
        assert kind == "data:image/webp;base64"
        picture = Image.open(io.BytesIO(b64decode(data)))
        assert (picture.format, picture.size, picture.convert("L").getpixel((0, 0))) == ("WEBP", (8, 8), 4)
        worker.succeed(job)
        last = list(source.events)[-1]
        assert (last.id, json.loads(last.data)["previews"]) == ("succeeded", [])


def test_who_did_not_ask_sees_none_and_is_not_woken_by_them(http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    with follow(http, events_of(job_id)) as source:
        next(source.events)
        job = worker.take()
        worker.report(job, 4)
        while next(source.events).id != "running-4":
            pass
        worker.preview(job, 4)
        worker.report(job, 5)
        event = next(source.events)
        assert event.id == "running-5"
        assert "previews" not in json.loads(event.data)
        worker.succeed(job)


def test_previews_are_asked_for_as_long_as_somebody_watches(
    http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    key, job_id = "", submit(http)
    key = preview_asked_key(job_id)
    with follow(http, events_of(job_id)) as source:
        next(source.events)
        assert not valkey.client.exists(key)
    with follow(http, events_of(job_id) + PREVIEWS) as source:
        next(source.events)
        assert valkey.client.exists(key)
        valkey.client.delete(key)
        poll(lambda: valkey.client.exists(key))
    poll(lambda: not valkey.client.exists(key))


def test_a_preview_that_no_worker_of_this_release_wrote_is_none(
    http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    job_id = submit(http)
    job = worker.take()
    valkey.client.set(preview_key(job_id), b"\x00 something else")
    worker.report(job, 1)
    with follow(http, events_of(job_id) + PREVIEWS) as source:
        worker.report(job, 2)
        while (event := next(source.events)).id != "running-2":
            pass
        assert json.loads(event.data)["previews"] == []
        worker.succeed(job)


def test_preview_is_0_or_1(http: httpx.Client, worker: FakeWorker) -> None:
    answer = http.get(events_of(submit(http)) + "?preview=yes")
    assert (answer.status_code, answer.headers["Content-Type"]) == (422, "application/problem+json")
    assert answer.json()["errors"][0]["field"] == "query.preview"

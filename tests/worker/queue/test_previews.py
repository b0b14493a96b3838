"""A worker previews the jobs that somebody watches, and no other."""

import io
from base64 import b64decode

from PIL import Image

from tests.conftest import ValkeyHandle
from tests.waiting import wait_until
from tests.worker.queue.conftest import Jobs, Workers
from tests.worker.queue.fake_engine import pixels_of
from worker.contract import PreviewSnapshot, events_channel
from worker.contract.keys import preview_asked_key, preview_key


def test_a_watched_job_has_previews_and_its_neighbour_none(jobs: Jobs, workers: Workers, valkey: ValkeyHandle) -> None:
    watched, other = jobs.add(5, steps=1000), jobs.add(6, steps=1000)
    valkey.client.set(preview_asked_key(watched), 1, ex=60)
    with valkey.client.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
        channel.subscribe(events_channel(watched))
        workers.start(step_ms=10)
        wait_until(lambda: valkey.client.exists(preview_key(watched)), "a preview")
        wait_until(lambda: (channel.get_message(timeout=1) or {}).get("data") == b"", "a word of it")
    raw = valkey.client.get(preview_key(watched))
    assert isinstance(raw, bytes)
    (preview,) = PreviewSnapshot.model_validate_json(raw).previews
    assert preview.step > 0
    assert Image.open(io.BytesIO(b64decode(preview.webp))).convert("L").tobytes() == pixels_of(5).tobytes()
    assert 0 < valkey.client.ttl(preview_key(watched)) <= 15
    assert not valkey.client.exists(preview_key(other))
    for job_id in (watched, other):
        jobs.cancel(job_id)


def test_previews_end_when_nobody_asks_any_more(jobs: Jobs, workers: Workers, valkey: ValkeyHandle) -> None:
    job_id = jobs.add(5, steps=1000)
    key, asked = preview_key(job_id), preview_asked_key(job_id)
    valkey.client.set(asked, 1)
    workers.start(step_ms=10)
    wait_until(lambda: valkey.client.exists(key), "a preview")
    valkey.client.delete(asked)

    def stays_away() -> bool:
        valkey.client.delete(key)
        try:
            wait_until(lambda: valkey.client.exists(key), "a late one", timeout_s=0.7)
        except AssertionError:
            return True
        return False

    wait_until(stays_away, "no more previews")
    assert jobs.status(job_id) == "started"
    jobs.cancel(job_id)

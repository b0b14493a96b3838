"""What GET /jobs/{id}/events promises: every state that a client has not seen, and the end, once."""

import json
from collections.abc import Callable

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import ValkeyHandle
from tests.service.event_source import Event, EventSource, events_of, follow
from tests.service.fake_worker import OUT_OF_MEMORY, FakeWorker
from tests.service.test_jobs import poll, submit
from worker.contract import events_channel

END = ["succeeded", "failed", "canceled"]
STEPS = 40


def end_as(end: str, job_id: str, http: httpx.Client, worker: FakeWorker) -> None:
    if end == "canceled":
        assert http.delete(f"/jobs/{job_id}").status_code == 200
    elif end == "succeeded":
        worker.succeed(worker.take())
    else:
        worker.fail(worker.take(), OUT_OF_MEMORY.model_dump_json())


def without_expiry(job: dict[str, object]) -> dict[str, object]:
    """It is computed from the time that is left, which is known to the millisecond."""
    return {key: value for key, value in job.items() if key != "expires_at"}


def seen(event: Event) -> tuple[str, str]:
    return event.name, event.id


def pubsub_connections(valkey: ValkeyHandle) -> int:
    return len(valkey.client.client_list(_type="pubsub"))


def subscribers(valkey: ValkeyHandle, job_id: str) -> int:
    ((_, count),) = valkey.client.pubsub_numsub(events_channel(job_id))
    return int(count)


@pytest.mark.parametrize("end", END)
def test_a_job_that_has_ended_gives_its_end_at_once(end: str, http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    end_as(end, job_id, http, worker)
    with follow(http, events_of(job_id)) as source:
        (event,) = source.events
    assert seen(event) == (end, end)
    assert without_expiry(json.loads(event.data)) == without_expiry(http.get(f"/jobs/{job_id}").json())


def test_a_stream_is_not_cached_nor_held_back_and_says_when_to_come_again(
    http: httpx.Client, worker: FakeWorker
) -> None:
    with follow(http, events_of(submit(http))) as source:
        next(source.events)
        headers = source.response.headers
        assert headers["Content-Type"].startswith("text/event-stream")
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Accel-Buffering"] == "no"
        assert source.retry_ms == 2000


def test_a_job_that_never_was_is_a_404_problem(http: httpx.Client) -> None:
    answer = http.get(f"/jobs/{'0' * 32}/events")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_every_change_is_one_event_and_the_end_is_the_last(http: httpx.Client, worker: FakeWorker) -> None:
    ahead, job_id = submit(http), submit(http, steps=STEPS)
    with follow(http, events_of(job_id)) as source:
        events = source.events
        assert seen(next(events)) == ("queued", "queued-1")
        http.delete(f"/jobs/{ahead}")
        assert seen(next(events)) == ("queued", "queued-0")
        job = worker.take()
        assert seen(next(events)) == ("progress", "running")
        worker.report(job, 1)
        assert seen(event := next(events)) == ("progress", "running-1")
        assert json.loads(event.data)["progress"] == {"step": 1, "steps": STEPS}
        worker.succeed(job)
        (last,) = events
        assert seen(last) == ("succeeded", "succeeded")
        assert len(json.loads(last.data)["images"]) == 2


@pytest.mark.parametrize("end", END)
def test_a_client_that_has_seen_the_end_need_not_come_again(end: str, http: httpx.Client, worker: FakeWorker) -> None:
    job_id = submit(http)
    end_as(end, job_id, http, worker)
    answer = http.get(events_of(job_id), headers={"Last-Event-ID": end})
    # The one answer upon which a browser's EventSource does not connect again.
    assert answer.status_code == 204
    other = http.get(events_of(job_id), headers={"Last-Event-ID": "running-3"})
    assert other.text.count("event: ") == 1


@given(breaks=st.lists(st.booleans(), min_size=6, max_size=6), told=st.booleans(), end=st.sampled_from(END))
@settings(max_examples=6, deadline=None, database=None, suppress_health_check=list(HealthCheck))
def test_a_client_that_comes_again_misses_nothing_and_sees_nothing_twice(
    breaks: list[bool], told: bool, end: str, http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    """The connection breaks, or not, before each change; the change happens while nobody is connected, or somebody."""
    valkey.client.flushall()
    worker.announce()
    worker.tells = True
    job_id, last, ids = submit(http, steps=STEPS), None, []
    job = worker.take()
    for step, broken in enumerate(breaks, 1):
        with follow(http, events_of(job_id), last) as source:
            if told or not broken:
                worker.report(job, step)
                while source.last_event_id != f"running-{step}":
                    ids.append(next(source.events).id)
            last = source.last_event_id or None
        worker.report(job, step)
    with follow(http, events_of(job_id), last) as source:
        if end == "canceled":
            http.delete(f"/jobs/{job_id}")
        elif end == "succeeded":
            worker.succeed(job)
        else:
            worker.fail(job, OUT_OF_MEMORY.model_dump_json())
        ids += [event.id for event in source.events]
    assert ids[-1] == end
    assert len(ids) == len(set(ids))


def test_any_number_of_streams_share_one_connection_and_leave_nothing_behind(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], valkey: ValkeyHandle
) -> None:
    http = start_gateway(max_streams=8)
    poll(lambda: pubsub_connections(valkey) == 0)  # an earlier test's is closed in a moment
    job_ids = [submit(http) for _ in range(4)]
    opened = [http.stream("GET", events_of(job_id)) for job_id in job_ids * 2]
    sources = [EventSource(stream.__enter__()) for stream in opened]
    for source in sources:
        next(source.events)
    poll(lambda: [subscribers(valkey, job_id) for job_id in job_ids] == [1] * 4)
    assert pubsub_connections(valkey) == 1
    refused = http.get(events_of(job_ids[0]))
    assert (refused.status_code, refused.json()["code"]) == (503, "too_many_streams")
    assert "Retry-After" in refused.headers

    for stream in opened[:5]:  # all those of the first job, the first of each other one
        stream.__exit__(None, None, None)
    poll(lambda: [subscribers(valkey, job_id) for job_id in job_ids] == [0, 1, 1, 1])
    with follow(http, events_of(job_ids[0])) as source:
        assert seen(next(source.events)) == ("queued", "queued-0")
    for stream in opened[5:]:
        stream.__exit__(None, None, None)
    poll(lambda: pubsub_connections(valkey) == 0)
    assert not any(subscribers(valkey, job_id) for job_id in job_ids)


def test_a_stream_with_nothing_to_say_sends_comments(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway(stream_heartbeat_s=0.02, stream_s=0.5)
    with follow(http, events_of(submit(http))) as source:
        assert [seen(event) for event in source.events] == [("queued", "queued-0")]
    assert source.comments >= 3


def test_a_long_stream_is_ended_and_goes_on_in_another(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client]
) -> None:
    http = start_gateway(stream_s=0.05)
    job_id = submit(http)
    with follow(http, events_of(job_id)) as source:
        assert [event.id for event in source.events] == ["queued-0"]
    with follow(http, events_of(job_id), "queued-0") as source:
        assert list(source.events) == []
    worker.succeed(worker.take())
    with follow(http, events_of(job_id), "queued-0") as source:
        assert [event.id for event in source.events] == ["succeeded"]


def test_a_job_that_is_forgotten_meanwhile_ends_its_stream(
    http: httpx.Client, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    job_id = submit(http)
    with follow(http, events_of(job_id)) as source:
        assert next(source.events).id == "queued-0"
        valkey.client.flushall()
        (last,) = source.events
    # No state of the job: whoever comes again goes on from the one that was shown.
    assert seen(last) == ("error", "queued-0")
    assert json.loads(last.data)["code"] == "not_found"


def test_a_cancel_is_told_to_those_who_watch(http: httpx.Client, valkey: ValkeyHandle) -> None:
    job_id = submit(http)
    with valkey.client.pubsub(ignore_subscribe_messages=True) as pubsub:  # type: ignore[no-untyped-call]
        pubsub.subscribe(events_channel(job_id))
        http.delete(f"/jobs/{job_id}")
        poll(lambda: pubsub.get_message(timeout=1) is not None)

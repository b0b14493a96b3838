"""A client of server-sent events, after the parsing rules of the HTML standard (9.2.6)."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx


@dataclass(frozen=True)
class Event:
    name: str
    id: str
    """The last one given so far, as a browser would send it when it connects again."""
    data: str


@dataclass
class EventSource:
    """One open stream. `events` goes on where it was left."""

    response: httpx.Response
    events: Iterator[Event] = field(init=False)
    last_event_id: str = ""
    retry_ms: int | None = None
    comments: int = 0

    def __post_init__(self) -> None:
        self.events = self._parse(self.response.iter_lines())

    def _parse(self, lines: Iterator[str]) -> Iterator[Event]:
        name, data, event_id = "", list[str](), self.last_event_id
        for line in lines:
            key, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if not line:
                self.last_event_id = event_id
                if data:
                    yield Event(name or "message", self.last_event_id, "\n".join(data))
                name, data = "", []
            elif not key:
                self.comments += 1
            elif key == "event":
                name = value
            elif key == "data":
                data.append(value)
            elif key == "id":
                event_id = value
            elif key == "retry":
                self.retry_ms = int(value)
            else:
                raise AssertionError(f"no field of an event: {line!r}")


def events_of(job_id: str) -> str:
    return f"/jobs/{job_id}/events"


@contextmanager
def follow(http: httpx.Client, url: str, last_event_id: str | None = None) -> Iterator[EventSource]:
    """Raises httpx.HTTPStatusError when the answer is no stream."""
    headers = {} if last_event_id is None else {"Last-Event-ID": last_event_id}
    with http.stream("GET", url, headers=headers) as response:
        response.raise_for_status()
        assert response.status_code == 200, "told that it has seen the end"
        yield EventSource(response, last_event_id=last_event_id or "")

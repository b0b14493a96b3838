"""A job's server-sent events: parsed by the rules of the HTML standard (9.2.6), resumed where they broke."""

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

import httpx
from pydantic import BaseModel

from service.client.errors import ProblemError, Unreachable
from service.client.retries import Retries
from service.schemas import Job, Preview

ENDS = frozenset({"succeeded", "failed", "canceled"})
RECONNECT_S = 2.0


class _Previews(BaseModel):
    previews: list[Preview] = []


@dataclass(frozen=True, slots=True)
class PreviewPicture:
    """What an image is going to be.

    Attributes:
        index: of the image.
        step: steps behind it when it was predicted.
        data: a small WebP.
    """

    index: int
    step: int
    data: bytes = field(repr=False)

    @classmethod
    def of(cls, preview: Preview) -> Self:
        return cls(preview.index, preview.step, base64.b64decode(preview.url.partition(",")[2]))


@dataclass(frozen=True, slots=True)
class JobEvent:
    """A change of a job.

    Attributes:
        name: queued, progress, succeeded, failed or canceled.
        job: as it was then.
        previews: of the images that are being drawn, where the gateway sent any.
    """

    name: str
    job: Job
    previews: tuple[PreviewPicture, ...] = ()

    @property
    def is_last(self) -> bool:
        return self.name in ENDS


class EventFeed:
    """One job's stream over any number of connections: what to ask for next, and what the lines mean."""

    def __init__(self, retries: Retries) -> None:
        self._retries = retries
        self._reconnect_s = RECONNECT_S
        self._broken = 0
        self._last_event_id = ""
        self._clear()

    @property
    def headers(self) -> Mapping[str, str]:
        """Of the next connection."""
        resume = {"Last-Event-ID": self._last_event_id} if self._last_event_id else {}
        return {"Accept": "text/event-stream", **resume}

    def line(self, line: str) -> JobEvent | None:
        """The event that this line ends, if it ends one.

        Raises:
            ProblemError: the stream can't go on and would not by another connection.
        """
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        match name:
            case "":
                self._broken = 0  # alive: what breaks from here on has all its attempts again
                return None if line else self._dispatch()
            case "event":
                self._name = value
            case "data":
                self._data.append(value)
            case "id" if "\0" not in value:
                self._id = value
            case "retry" if value.isdecimal():
                self._reconnect_s = int(value[:9]) / 1000
            case _:
                pass  # a field of a later standard
        return None

    def pause_s(self, outcome: httpx.Response | httpx.TransportError | None) -> float:
        """Seconds until the next connection.

        Args:
            outcome: the answer that was no stream, what broke the connection, or None when the gateway closed it.

        Raises:
            ReverieError: there is no next one.
        """
        self._clear()
        if outcome is None:
            return min(self._reconnect_s, self._retries.longest_pause_s)
        self._broken += 1
        return self._retries.pause_s(self._broken, outcome)

    def _dispatch(self) -> JobEvent | None:
        name, data, event_id = self._name, "\n".join(self._data), self._id
        self._clear()
        self._last_event_id = self._id = event_id
        if not data:
            return None
        if name == "error":
            self._on_error(data)
            return None
        try:
            job = Job.model_validate_json(data, extra="ignore")
            watched = _Previews.model_validate_json(data, extra="ignore")
            return JobEvent(name, job, tuple(PreviewPicture.of(preview) for preview in watched.previews))
        except ValueError as error:
            raise Unreachable(f"an event {name!r} is no job: is it a Reverie gateway?") from error

    def _on_error(self, data: str) -> None:
        document = json.loads(data)
        if document.get("code") != "redis_unavailable":
            raise ProblemError(str(document.get("detail", "")), int(document.get("status", 500)), document)

    def _clear(self) -> None:
        self._name = ""
        self._data: list[str] = []
        self._id = self._last_event_id

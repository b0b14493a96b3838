"""Spans of a job's trace: `submit` in the gateway; `wait`, `run` and `finish` in the worker, all of one parent.

Without REVERIE_OTLP_ENDPOINT nothing is recorded, and the trace that a client's `traceparent` names is handed on.
"""

from collections.abc import Mapping
from typing import Protocol

from pydantic import Field

from worker.contract.environment import PREFIX, EnvironmentSettings, SettingsError


class TraceSettings(EnvironmentSettings):
    """Where a process sends its spans."""

    otlp_endpoint: str | None = Field(default=None, pattern=r"^https?://")
    """Of an OpenTelemetry collector (OTLP over HTTP), for example http://localhost:4318; None: nowhere."""


class Span(Protocol):
    @property
    def traceparent(self) -> str | None:
        """What makes other spans its children."""

    def end(self, at_s: float | None = None, error: str | None = None) -> None:
        """
        Args:
            at_s: seconds since 1970; None: now.
            error: why what it spans did not succeed.
        """


class Spans(Protocol):
    def begin(
        self, name: str, parent: str | None, attributes: Mapping[str, str | int | float], at_s: float | None = None
    ) -> Span:
        """
        Args:
            parent: a traceparent; None begins a trace.
            at_s: seconds since 1970; None: now.
        """

    def close(self) -> None:
        """Send what is left; takes a few seconds at most."""


class _NoSpan:
    def __init__(self, traceparent: str | None) -> None:
        self.traceparent = traceparent

    def end(self, at_s: float | None = None, error: str | None = None) -> None:
        return


class NoSpans:
    """Records nothing."""

    def begin(
        self, name: str, parent: str | None, attributes: Mapping[str, str | int | float], at_s: float | None = None
    ) -> Span:
        return _NoSpan(parent)

    def close(self) -> None:
        return


NO_SPANS = NoSpans()


def spans_for(settings: TraceSettings, process: str) -> Spans:
    """
    Raises:
        SettingsError: spans are wanted and OpenTelemetry is not installed.
    """
    if settings.otlp_endpoint is None:
        return NO_SPANS
    try:
        from worker.contract.otel_spans import OtelSpans
    except ImportError as error:
        raise SettingsError(
            f"{PREFIX}OTLP_ENDPOINT={settings.otlp_endpoint}: "
            f"need OpenTelemetry, `pip install 'reverie[otel]'` ({error})"
        ) from None
    return OtelSpans(settings.otlp_endpoint, process)

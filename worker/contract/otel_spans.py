"""Spans through the OpenTelemetry SDK, sent in batches beside the work. OTEL_ variables (sampler, headers) apply."""

from collections.abc import Mapping

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

SEND_TIMEOUT_S = 3


class OtelSpan:
    def __init__(self, span: trace.Span) -> None:
        self._span = span

    @property
    def traceparent(self) -> str:
        context = self._span.get_span_context()
        return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"

    def end(self, at_s: float | None = None, error: str | None = None) -> None:
        if error is not None:
            self._span.set_status(StatusCode.ERROR, error)
        self._span.end(_ns(at_s))


class OtelSpans:
    def __init__(self, endpoint: str, process: str) -> None:
        self._provider = TracerProvider(
            resource=Resource.create({"service.name": f"reverie-{process}"}), shutdown_on_exit=False
        )
        exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=SEND_TIMEOUT_S)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("reverie")
        self._propagator = TraceContextTextMapPropagator()

    def begin(
        self, name: str, parent: str | None, attributes: Mapping[str, str | int | float], at_s: float | None = None
    ) -> OtelSpan:
        # An empty context, or a span that happens to be current here would be the parent of a trace that begins.
        context = self._propagator.extract({"traceparent": parent} if parent else {}, context=Context())
        return OtelSpan(
            self._tracer.start_span(name, context=context, attributes=dict(attributes), start_time=_ns(at_s))
        )

    def close(self) -> None:
        self._provider.shutdown()


def _ns(at_s: float | None) -> int | None:
    return None if at_s is None else int(at_s * 1e9)

"""How every process logs: JSON lines for machines, or plain lines where a person reads them at a terminal.

Modules log through `logging` as ever. A line about a job begins with `job <id>`, which becomes its field `job_id`; what
else belongs to a line is given as `extra`, or bound for the length of a request with structlog's contextvars.
"""

import logging
import os
import re
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import Any, Literal, TextIO

import structlog
from pydantic import field_validator
from structlog.typing import EventDict, Processor, WrappedLogger

from worker.contract.environment import EnvironmentSettings

LogFormat = Literal["auto", "json", "console"]
_ABOUT_A_JOB = re.compile(r"job ([0-9a-f]{32})\b")


class LogSettings(EnvironmentSettings):
    """How a process logs to stderr."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    log_format: LogFormat = "auto"
    """`auto`: `console` at a terminal, else `json`."""

    @field_validator("log_level", mode="before")
    @classmethod
    def _level_in_any_case(cls, value: Any) -> Any:
        return value.upper() if isinstance(value, str) else value


def configure_logs(settings: LogSettings, process: str, stream: TextIO | None = None) -> None:
    """Send all logs of this process to `stream`, stderr by default.

    Args:
        process: names it in JSON lines: `gateway`, `worker`, ...
    """
    stream = stream or sys.stderr
    as_json = settings.log_format == "json" or (settings.log_format == "auto" and not stream.isatty())
    handler = logging.StreamHandler(stream)
    handler.addFilter(_name_job)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[
                structlog.contextvars.merge_contextvars,
                structlog.stdlib.add_log_level,
                structlog.stdlib.add_logger_name,
                structlog.stdlib.ExtraAdder(),
                structlog.processors.TimeStamper(fmt="iso", utc=True),
            ],
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.format_exc_info,
                *_renderers(process, as_json),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(settings.log_level)
    # RQ and uvicorn log their own bookkeeping at INFO, HTTP clients every request.
    for noisy in ("rq.worker", "uvicorn.error", "httpx", "httpcore"):
        logging.getLogger(noisy).setLevel(max(logging.WARNING, root.level))


def _name_job(record: logging.LogRecord) -> bool:
    about = _ABOUT_A_JOB.match(record.getMessage())
    if about:
        record.job_id = about[1]
    return True


def _renderers(process: str, as_json: bool) -> Sequence[Processor]:
    if not as_json:
        return [_console_line]

    def name_process(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
        event["process"], event["pid"] = process, os.getpid()
        return event

    order = structlog.processors.EventRenamer("message"), _in_reading_order
    return [name_process, *order, structlog.processors.JSONRenderer()]


def _in_reading_order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    first = ("timestamp", "level", "process", "pid", "logger", "message")
    return {**{key: event[key] for key in first if key in event}, **event}


def _console_line(_logger: WrappedLogger, _method: str, event: EventDict) -> str:
    """`21:30:05.123 WARNING worker.queue.finisher: text  key=value`; the traceback below it."""
    text = _printable(str(event.pop("event")))
    moment = datetime.fromisoformat(event.pop("timestamp")).astimezone()
    level, logger, exception = event.pop("level").upper(), event.pop("logger"), event.pop("exception", None)
    # A field that the text contains already would only make the line longer.
    rest = {key: _printable(str(value)) for key, value in event.items() if value is not None}
    fields = "".join(f"  {key}={value}" for key, value in rest.items() if value not in text)
    line = f"{moment:%H:%M:%S}.{moment.microsecond // 1000:03} {level:7} {logger}: {text}{fields}"
    return f"{line}\n{exception}" if exception else line


def _printable(text: str) -> str:
    """Nobody forges a line, or commands the terminal, with what he sends."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)

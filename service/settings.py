"""The gateway's settings: environment variables with the prefix REVERIE_, read once into a frozen object."""

import re

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

PREFIX = "REVERIE_"


class SettingsError(Exception):
    """Bad settings: one line for each, naming the variable, its value and the rule."""


class Settings(BaseSettings):
    # ignore: the worker and the launcher read their own variables under the same prefix.
    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore")

    redis_url: str = Field(pattern=r"^(redis|rediss|unix)://.+")
    """redis://host:port/db, rediss://... or unix:///path."""
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes any free port; the log says which."""
    max_queue: int = Field(default=1_000_000, ge=1)
    """Most image-steps (batch x steps, summed over the waiting jobs); above it new jobs are answered 429."""
    max_queue_jobs: int = Field(default=20_000, ge=1)
    """Most waiting jobs, so that a flood of tiny ones can't fill Redis."""
    max_images: int = Field(default=64, ge=1, le=4096)
    """Most images of one request."""
    max_body_bytes: int = Field(default=64 * 1024, ge=256)
    result_ttl_s: int = Field(default=3600, ge=1)
    """How long an ended job and its images are kept."""
    job_timeout_s: int = Field(default=3600, ge=1)
    """Longest that a worker may compute one job; what it waits, also between two of its steps, does not count."""
    redis_timeout_s: float = Field(default=1.2, gt=0, le=30)
    """Longest that one use of Redis may take, connecting included. A request answers 503 after about as long."""
    max_streams: int = Field(default=512, ge=1)
    """Most open event streams of this gateway; above it a new one is answered 503."""
    stream_heartbeat_s: float = Field(default=15, gt=0)
    """An event stream that has nothing to say sends a comment this often, or proxies would take it for dead."""
    stream_s: float = Field(default=3600, gt=0)
    """After this long an event stream is ended; its client connects again and goes on where it was."""
    stream_outage_s: float = Field(default=60, gt=0)
    """How long an event stream waits for a Redis that does not answer before it ends with an `error` event."""


def load_settings() -> Settings:
    """Read the environment. SettingsError has one line per bad variable."""
    try:
        # The required fields come from the environment, which mypy's pydantic-free view cannot know.
        return Settings()  # type: ignore[call-arg]
    except ValidationError as error:
        lines = [_line(str(e["loc"][0]), e["type"], e["msg"], e.get("input")) for e in error.errors()]
        raise SettingsError("\n".join(lines)) from error


def _line(field: str, kind: str, rule: str, value: object) -> str:
    variable = field.upper() if field.upper().startswith(PREFIX) else PREFIX + field.upper()
    if kind == "missing":
        return f"{variable} is not set: need the address of Redis, for example redis://localhost:6379/0"
    # A URL may carry a password.
    shown = re.sub(r"//[^@/]*@", "//***@", str(value))
    return f"{variable}={shown}: {rule[0].lower()}{rule[1:]}"

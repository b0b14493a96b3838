"""The gateway's settings: environment variables with the prefix REVERIE_, read once into a frozen object."""

import ipaddress
import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import BeforeValidator, Field, SecretStr, field_validator, model_validator

from service.access.api_key import CostLimit
from service.access.key_ring import KeyRing
from service.access.listening import require_keys
from service.pictures import MOST_PIXELS
from service.webhooks.destination import AllowedHost
from service.webhooks.signing import SigningSecret
from worker.contract.environment import PREFIX
from worker.contract.logs import LogSettings
from worker.contract.redis_address import RedisUrl
from worker.contract.spans import TraceSettings
from worker.results.address import IN_REDIS, ResultsAddress


def _origins(text: str) -> tuple[str, ...]:
    origins = tuple(word.strip() for word in text.split(",") if word.strip())
    if not all(origin == "*" or re.fullmatch(r"https?://[^/\s*?#@]+", origin) for origin in origins):
        raise ValueError("need origins like https://example.org, separated by commas, or *")
    return origins


def _networks(text: str) -> tuple[str, ...]:
    networks = tuple(word.strip() for word in text.split(",") if word.strip())
    for network in networks:
        ipaddress.ip_network(network, strict=False)
    return networks


class Settings(LogSettings, TraceSettings):
    """What an operator may choose. Seconds everywhere a name ends in `_s`."""

    redis_url: RedisUrl
    host: str = Field(default="127.0.0.1", min_length=1)
    port: int = Field(default=8000, ge=0, le=65535)
    """0 takes any free port; the log says which."""
    api_keys: SecretStr | None = None
    """Lines of `service.access.api_key`, or the path of a file that holds them; None: keys are off."""
    allow_anonymous: bool = False
    """Listen without keys where other machines can reach it."""
    cors_origins: Annotated[tuple[str, ...], BeforeValidator(_origins)] = ()
    """Sites whose pages may use it from a browser, like https://example.org, separated by commas; `*` for all."""
    trusted_proxies: Annotated[tuple[str, ...], BeforeValidator(_networks)] = ()
    """Addresses or networks of the proxies whose X-Forwarded-For and X-Forwarded-Proto are believed."""
    max_connections: int = Field(default=4096, ge=1)
    """Most open connections; above it 503."""
    receive_timeout_s: float = Field(default=10, gt=0)
    """How long a client may take to send the first lines of a request, and besides 4 KiB a second its body."""
    key_limit: Annotated[CostLimit, BeforeValidator(CostLimit.parse)] | None = None
    """Seconds of a worker in so many seconds, like 600/3600, for each name of keys that have no limit of their own."""
    max_queue: int = Field(default=1_000_000, ge=1)
    """Most image-steps (batch x steps, guided images twice, summed over the waiting jobs); above it new jobs are
    answered 429."""
    max_queue_s: float | None = Field(default=None, gt=0)
    """Most seconds that the waiting jobs may take the live workers, as measured; above it 429 too. None: no limit."""
    max_queue_jobs: int = Field(default=20_000, ge=1)
    """Most waiting jobs, so that a flood of tiny ones can't fill Redis."""
    max_images: int = Field(default=64, ge=1, le=4096)
    """Most images of one request."""
    max_pixels: int = Field(default=1024 * 1024, ge=1)
    """Of one image of a request that names a size; a model's own size is always allowed."""
    max_body_bytes: int = Field(default=64 * 1024, ge=256)
    max_upload_bytes: int = Field(default=16 * 2**20, ge=256)
    """Of an uploaded picture's file."""
    max_all_uploads_bytes: int = Field(default=2**31, ge=256)
    """Of all uploaded pictures that are kept, as the PNGs that they become; above it a new one is answered 507."""
    max_upload_pixels: int = Field(default=2**24, ge=1, le=MOST_PIXELS)
    """Of an uploaded picture: 4096 x 4096."""
    upload_ttl_s: int = Field(default=24 * 3600, ge=1)
    """How long an uploaded picture is kept after its last use."""
    results: ResultsAddress = IN_REDIS
    result_ttl_s: int = Field(default=3600, ge=1)
    """How long an ended job and its images are kept."""
    job_timeout_s: int = Field(default=3600, ge=1)
    """Longest that a worker may compute one job; waiting, also between two of its steps, does not count."""
    redis_timeout_s: float = Field(default=1.2, gt=0, le=30)
    """Longest that one use of Redis may take, connecting included. A request answers 503 after about as long."""
    max_streams: int = Field(default=512, ge=1)
    """Most open event streams of this gateway; above it a new one is answered 503."""
    openai_wait_s: float = Field(default=600, gt=0)
    """Longest that POST /v1/images/generations waits for its images; as long as the `openai` package does."""
    webhook_hosts: str = ""
    """Where webhooks may go, by commas; see `service.webhooks.destination.AllowedHost`. Empty: webhooks are off."""
    webhook_secret: SecretStr | None = None
    """Signs webhooks; see `service.webhooks.signing`."""
    webhook_ca: Path | None = None
    """PEM file of authorities whose certificates a webhook's receiver may show, beside the system's."""
    stream_heartbeat_s: float = Field(default=15, gt=0)
    """An idle event stream sends a comment this often, so that proxies don't close it."""
    stream_s: float = Field(default=3600, gt=0)
    """An event stream ends after this long; its client reconnects and resumes."""
    stream_outage_s: float = Field(default=60, gt=0)
    """How long an event stream waits while Redis does not answer before it ends with an `error` event."""

    @field_validator("api_keys")
    @classmethod
    def _readable(cls, source: SecretStr | None) -> SecretStr | None:
        if source is not None:
            KeyRing(source.get_secret_value())
        return source

    @field_validator("webhook_hosts")
    @classmethod
    def _hosts(cls, entries: str) -> str:
        _hosts_in(entries)
        return entries

    @field_validator("webhook_secret")
    @classmethod
    def _secret(cls, secret: SecretStr | None) -> SecretStr | None:
        if secret is not None:
            SigningSecret(secret.get_secret_value())
        return secret

    @model_validator(mode="after")
    def _webhooks_are_signed(self) -> Self:
        if self.webhook_hosts and self.webhook_secret is None:
            raise ValueError(
                f"{PREFIX}WEBHOOK_HOSTS needs {PREFIX}WEBHOOK_SECRET: whsec_ and 32 random bytes in base64"
            )
        return self

    @property
    def allowed_webhook_hosts(self) -> list[AllowedHost]:
        return _hosts_in(self.webhook_hosts)

    @property
    def webhook_signing_secret(self) -> SigningSecret | None:
        """None while webhooks are off."""
        if self.webhook_secret is None or not self.webhook_hosts:
            return None
        return SigningSecret(self.webhook_secret.get_secret_value())

    @model_validator(mode="after")
    def _kept_from_strangers(self) -> Self:
        require_keys(self.host, self.api_keys is not None, self.allow_anonymous)
        return self


def _hosts_in(entries: str) -> list[AllowedHost]:
    return [AllowedHost.parse(entry.strip()) for entry in entries.split(",") if entry.strip()]

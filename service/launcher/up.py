"""`reverie up`: checks first, then Valkey, worker and gateway as child processes, until Ctrl-C."""

import json
import logging
import os
import shlex
import socket
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import httpx
import redis
from pydantic import Field, SecretStr, model_validator

from service.access.listening import require_keys
from service.client.errors import ProblemError
from service.launcher.command_errors import PortTakenError, RedisError, StoreError
from service.launcher.data_dir import DataDir
from service.launcher.embedded_valkey import EmbeddedValkey, bundled_binary, find_server_binary
from service.launcher.first_request import first_request
from service.launcher.supervisor import READY_TIMEOUT_S, Service, Supervisor
from service.launcher.workers import ask_for_devices, usable_cores, worker_environments
from worker.contract.environment import SettingsError
from worker.contract.logs import LogSettings, configure_logs
from worker.contract.redis_address import RedisUrl, without_password

log = logging.getLogger("reverie")

PYTHON = sys.executable or "python3"


class UpSettings(LogSettings):
    """What `reverie up` itself needs to know; the children read their own settings from the same environment."""

    redis_url: RedisUrl | None = None
    """None: an embedded Valkey."""
    data_dir: Path = Path(".reverie")
    """Where the embedded Valkey keeps its data."""
    store: Path | None = None
    """None: the bundled models."""
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=0, le=65535)
    """0: any free port."""
    workers: str = Field(default="1", pattern=r"^(auto|[1-9]\d{0,2})$")
    """How many; `auto`: one for each GPU."""
    ready_timeout_s: float = Field(default=READY_TIMEOUT_S, gt=0)
    grace_s: float = Field(default=25.0, ge=0)
    """How long the worker may finish running jobs after a stop; the rest goes back into the queue."""
    api_keys: SecretStr | None = None
    allow_anonymous: bool = False

    @model_validator(mode="after")
    def _kept_from_strangers(self) -> Self:
        require_keys(self.host, self.api_keys is not None, self.allow_anonymous)
        return self


@dataclass(frozen=True)
class Commands:
    """The commands of the worker, the gateway and the first image, and the one that lists the devices."""

    worker: tuple[str, ...] = (PYTHON, "-m", "worker")
    devices: tuple[str, ...] = (PYTHON, "-m", "worker.devices")
    gateway: tuple[str, ...] = (PYTHON, "-m", "service")
    draw: tuple[str, ...] = (PYTHON, "-m", "service.launcher.cli", "generate")


def up(settings: UpSettings, *, draw_into: Path | None = None, commands: Commands | None = None) -> int:
    """Run everything until a stop signal; returns the exit code. Raises `CommandError` for what can't be started."""
    commands = commands or Commands()
    port = free_port(settings.host, settings.port)
    if settings.store is not None:
        check_store(settings.store)
    url = f"http://{_reachable(settings.host)}:{port}"
    with ExitStack() as held:
        services: list[Service] = []
        if settings.redis_url is None:
            binary = find_server_binary(bundled_binary())
            data_dir = held.enter_context(DataDir.acquire(settings.data_dir))
            valkey = EmbeddedValkey(data_dir, binary)
            redis_url = valkey.url
            services.append(valkey.service())
        else:
            redis_url = settings.redis_url
            check_redis(redis_url)
        env = {**os.environ, "REVERIE_REDIS_URL": redis_url, "REVERIE_HOST": settings.host, "REVERIE_PORT": str(port)}
        if settings.store is not None:
            env["REVERIE_STORE"] = str(settings.store.absolute())
        # Longer than the worker's own grace, after which it puts its jobs back and ends by itself.
        services += [
            Service(name, commands.worker, own, stop_grace_s=settings.grace_s + 10)
            for name, own in _workers(settings.workers, commands, env)
        ]
        services.append(Service("gateway", commands.gateway, env))
        configure_logs(settings, "up")
        log.info("starting %s ...", ", ".join(service.name for service in services))

        def on_ready() -> Service | None:
            request = first_request(url)
            announce(url, redis_url, request, with_keys=settings.api_keys is not None)
            if draw_into is None:
                return None
            fields = [f"--{name}={value}" for name, value in request.items()]
            return Service("draw", (*commands.draw, "--url", url, *fields, "--out", str(draw_into)), env, restart=False)

        supervisor = Supervisor(services, say=log.warning)
        return supervisor.run(
            what_is_missing=lambda: what_is_missing(url), ready_timeout_s=settings.ready_timeout_s, on_ready=on_ready
        )


def _workers(wanted: str, commands: Commands, env: dict[str, str]) -> list[tuple[str, dict[str, str]]]:
    """Name and environment of each worker; one alone reads the environment as it is."""
    devices = [] if wanted == "1" else ask_for_devices(commands.devices, env)
    environments = worker_environments(wanted, env, devices, usable_cores())
    if len(environments) == 1:
        return [("worker", environments[0])]
    return [(f"worker {number}", own) for number, own in enumerate(environments, start=1)]


def announce(url: str, redis_url: str, request: Mapping[str, str | int], *, with_keys: bool) -> None:
    """Print the address and a first command; with keys on, the shell puts the caller's own into it."""
    wait = "Prefer: wait=30"  # the answer then is the finished job, with the address of its image
    curl = ["curl", "-s", f"{url}/generate", "-H", "Content-Type: application/json", "-H", wait]
    curl += ["-d", json.dumps(request)]
    key = ' -H "Authorization: Bearer $REVERIE_API_KEY"' if with_keys else ""
    print(
        f"\nReverie is ready at {url}\n"
        f"  API documentation   {url}/docs\n"
        f"  queue               {without_password(redis_url)}\n\n"
        f"  {shlex.join(curl)}{key}\n\n"
        "Ctrl-C ends it.\n",
        flush=True,
    )


def what_is_missing(url: str) -> str | None:
    """Why the gateway at `url` can't serve yet; None once it can."""
    try:
        # trust_env: a proxy from the environment can't reach this machine's loopback address
        answer = httpx.get(f"{url}/readyz", timeout=2.0, trust_env=False)
    except httpx.TransportError as error:
        return f"the gateway does not answer ({error})"
    return None if answer.status_code == 200 else str(ProblemError.of(answer))


def free_port(host: str, port: int) -> int:
    """`port`, or any free one for 0, after seeing that this process may listen on it."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except socket.gaierror as error:
        raise SettingsError(
            f"REVERIE_HOST must be an address of this machine, got {host!r}: {error.strerror}"
        ) from error
    with socket.socket(family, kind, protocol) as probe:
        # As the gateway will: lingering connections of an earlier run don't count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(address)
            # bind alone succeeds beside a listener that has set SO_REUSEADDR too on some systems
            probe.listen(1)
        except OSError as error:
            raise PortTakenError(
                f"can't listen on {host}:{port}: {error.strerror}; set REVERIE_PORT or --port"
            ) from error
        return int(probe.getsockname()[1])


def check_store(store: Path) -> None:
    """A quick check before anything is started; the worker checks the checkpoints themselves."""
    if not store.is_dir():
        raise StoreError(
            f"the model store {store} is not a directory; set REVERIE_STORE or leave it out for the bundled models"
        )
    if not any(store.glob("*/current")):
        raise StoreError(f"the model store {store} holds no published model: no {store}/<model>/current")


def check_redis(url: str) -> None:
    """Raise unless a server answers there."""
    try:
        with redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=5) as client:
            client.ping()
    except (redis.RedisError, ValueError) as error:
        raise RedisError(f"no Redis answers at REVERIE_REDIS_URL {without_password(url)}: {error}") from error


def _reachable(host: str) -> str:
    """How a client on this machine reaches a server that listens on `host`."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"[{host}]" if ":" in host else host

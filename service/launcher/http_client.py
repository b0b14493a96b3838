"""A running gateway as the command line sees it: submit, wait, fetch; every refusal is one line."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote, urlsplit

import httpx

from service.launcher.command_errors import RemoteError

PROBLEM_MEDIA_TYPE = "application/problem+json"
TERMINAL = ("succeeded", "failed", "canceled")
LOOPBACK = ("localhost", "127.0.0.1", "::1")


class GatewayClient:
    """One gateway at `url`."""

    def __init__(self, url: str, *, timeout_s: float = 30.0, transport: httpx.BaseTransport | None = None) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise RemoteError(f"need an address like http://127.0.0.1:8000, got {url!r}")
        self._client = httpx.Client(
            base_url=url.rstrip("/"),
            timeout=timeout_s,
            transport=transport,
            # A proxy that the environment names can't reach this machine's own loopback address.
            trust_env=parts.hostname not in LOOPBACK,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()

    def submit(self, request: Mapping[str, object]) -> dict[str, Any]:
        """POST /generate; returns the job."""
        return self._object(self._call("POST", "/generate", json=dict(request)))

    def job(self, job: Mapping[str, Any]) -> dict[str, Any]:
        """The job as it is now."""
        return self._object(self._call("GET", str(job["links"]["self"])))

    def cancel(self, job: Mapping[str, Any]) -> None:
        self._call("DELETE", str(job["links"]["self"]))

    def wait(
        self,
        job: dict[str, Any],
        *,
        on_progress: Callable[[Mapping[str, Any]], None] = lambda job: None,
        sleep: Callable[[float], None] = time.sleep,
    ) -> dict[str, Any]:
        """Poll until the job has ended. Raises `RemoteError` unless it succeeded."""
        interval_s = 0.05
        while job["status"] not in TERMINAL:
            on_progress(job)
            sleep(interval_s)
            interval_s = min(1.0, interval_s * 1.5)
            job = self.job(job)
        if job["status"] == "failed":
            error = job.get("error") or {}
            raise RemoteError(f"job {job['id']} failed: {error.get('detail', 'no reason given')} ({error.get('code')})")
        if job["status"] == "canceled":
            raise RemoteError(f"job {job['id']} was canceled")
        return job

    def save_images(self, job: Mapping[str, Any], directory: Path) -> list[Path]:
        """Fetch a succeeded job's images into `directory`; returns their paths, in order."""
        try:
            directory.mkdir(parents=True, exist_ok=True)
            paths = []
            for image in job["images"]:
                content = self._call("GET", str(image["url"])).content
                path = directory / f"{job['model']}-seed{image['seed']}-{str(job['id'])[:8]}.{job['format']}"
                path.write_bytes(content)
                paths.append(path)
        except OSError as error:
            raise RemoteError(f"can't write images into {directory}: {error.strerror}") from error
        return paths

    def models(self) -> dict[str, Any]:
        """GET /models."""
        return self._object(self._call("GET", "/models"))

    def model(self, name: str) -> dict[str, Any]:
        """GET /models/{name}."""
        return self._object(self._call("GET", f"/models/{quote(name, safe='')}"))

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response:
        try:
            response = self._client.request(method, path, **options)
        except (httpx.TransportError, httpx.InvalidURL) as error:
            raise RemoteError(f"no gateway answers at {self._client.base_url}: {error}") from error
        if response.is_success:
            return response
        raise RemoteError(refusal(response))

    @staticmethod
    def _object(response: httpx.Response) -> dict[str, Any]:
        try:
            body = response.json()
        except ValueError:
            body = None
        if not isinstance(body, dict):
            raise RemoteError(f"{response.request.url} did not answer with a JSON object: is it a Reverie gateway?")
        return body


def refusal(response: httpx.Response) -> str:
    """A refused call in one line: what the problem document says, else the bare status."""
    reason = ""
    if response.headers.get("content-type", "").startswith(PROBLEM_MEDIA_TYPE):
        reason = f": {' '.join(str(response.json().get('detail', '')).split())}"
    again = response.headers.get("retry-after")
    hint = f" (try again in {again} s)" if again is not None else ""
    return f"{response.request.method} {response.request.url} answered {response.status_code}{reason}{hint}"

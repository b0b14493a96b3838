"""Attacks by what a request says (paths, names, numbers, depth, patterns), and by what Redis holds."""

import json
import pickle
import re
import time
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import httpx
import pytest

import service
from tests.conftest import ValkeyHandle
from tests.service.attacks.raw import answers, send
from tests.service.fake_worker import FakeWorker
from worker.contract.keys import CATALOGUE_KEY, job_key, progress_key, results_key

GOOD = {"steps": 5, "batch": 1}

TRAVERSALS = [
    "..",
    "../../etc/passwd",
    "..%2f..%2f..%2fetc%2fpasswd",
    "%2e%2e/%2e%2e/etc/passwd",
    "%252e%252e%252fetc%252fpasswd",
    "..%5c..%5cetc%5cpasswd",
    "..%c0%af..%c0%afetc/passwd",
    "/etc/passwd",
    "%2fetc%2fpasswd",
    "file:%2f%2f%2fetc%2fpasswd",
    "digits%00.json",
    "digits/../../../pyproject.toml",
    "*",
    "rq:job:x",
    "%ff%fe",
]


def paths_with_a_parameter(http: httpx.Client) -> Iterator[str]:
    for path in http.get("/openapi.json").json()["paths"]:
        for parameter in re.findall(r"\{\w+\}", path):
            yield re.sub(r"\{\w+\}", "0", path.replace(parameter, "{}"))
    yield from ("/page/{}", "/static-offline-docs/{}", "/{}", "/docs/{}")


def test_no_path_leaves_its_place(http: httpx.Client) -> None:
    templates = list(paths_with_a_parameter(http))
    assert len(templates) > 5
    for template in templates:
        for traversal in TRAVERSALS:
            request = f"GET {template.format(traversal)} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
            (answer,) = answers(send(http, request.encode()))
            assert 400 <= answer.status < 500, (template, traversal, answer)
            for secret in (b"root:", b"[build-system]", b"Traceback"):
                assert secret not in answer.body


@pytest.mark.parametrize("field", ["model", "version", "init_image", "mask", "sampler", "class_label"])
@pytest.mark.parametrize(
    "name", ["../digits", "..", "/etc/passwd", "digits\0", "digits\n", "a" * 65, "digits/../digits"]
)
def test_no_name_in_a_body_is_a_path(http: httpx.Client, worker: FakeWorker, field: str, name: str) -> None:
    answer = http.post("/generate", json={**GOOD, field: name})
    assert answer.status_code == 422
    assert worker.queue_length() == 0


def send_json(http: httpx.Client, text: str | bytes) -> httpx.Response:
    return http.post("/generate", content=text, headers={"Content-Type": "application/json"})


NUMBERS = [
    "1" + "0" * 4200,
    "9" * 30_000,
    "1e400",
    "-1e400",
    "1e-400",
    "1" + "0" * 309 + ".5",
    "0." + "1" * 30_000,
    "1E+999999999",
]


@pytest.mark.parametrize("field", ["steps", "batch", "seed", "eta", "guidance_scale", "class_label"])
@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:12])
def test_no_number_is_too_large_to_be_refused(http: httpx.Client, worker: FakeWorker, field: str, number: str) -> None:
    body = {**GOOD, field: "NUMBER"}
    answer = send_json(http, json.dumps(body).replace('"NUMBER"', number))
    # What is next to nothing is nothing.
    fits = field in ("eta", "guidance_scale") and (number == "1e-400" or (number.startswith("0.") and field == "eta"))
    assert answer.status_code in (400, 422) or fits, answer.text
    assert len(answer.content) < 4000


@pytest.mark.parametrize("bracket", ["[", '{"a":', '[{"a":'], ids=["lists", "objects", "both"])
@pytest.mark.parametrize("depth", [100, 1000, 10_000])
@pytest.mark.parametrize("closed", [True, False])
def test_depth_is_refused_and_not_followed(
    http: httpx.Client, worker: FakeWorker, bracket: str, depth: int, closed: bool
) -> None:
    depth = min(depth, 60_000 // len(bracket) // (2 if closed else 1))
    opened = bracket * depth
    closing = "".join({"[": "]", "{": "}"}[c] for c in reversed(opened) if c in "[{") if closed else ""
    for text in (opened + "1" + closing, '{"steps": 5, "batch": ' + opened + "1" + closing + "}"):
        answer = send_json(http, text)
        assert answer.status_code in (400, 422), answer.text[:200]
        assert len(answer.content) < 4000
    assert worker.queue_length() == 0


def test_a_field_may_not_be_said_so_often_that_its_refusals_fill_the_memory(http: httpx.Client) -> None:
    many = json.dumps({**GOOD, **{f"field{number}": number for number in range(3000)}})
    answer = send_json(http, many)
    assert answer.status_code == 422
    assert len(answer.content) < 20 * len(many)


def all_patterns() -> dict[str, "re.Pattern[str]"]:
    """Every pattern that the gateway's modules hold, and those that the API's fields have."""
    found: dict[str, re.Pattern[str]] = {}
    for module in walk_packages(service.__path__, "service."):
        if module.name.endswith("__main__"):
            continue
        loaded = import_module(module.name)
        for name, value in vars(loaded).items():
            if isinstance(value, re.Pattern) and isinstance(value.pattern, str):
                found[f"{module.name}.{name}"] = value
            elif isinstance(value, str) and name.endswith("PATTERN"):
                found[f"{module.name}.{name}"] = re.compile(value)
    return found


PUMPS = [
    "a",
    "0",
    " ",
    "\t",
    ",",
    ";",
    "=",
    '"',
    "wait=",
    "wait = ",
    ",wait=1",
    "; ",
    "-",
    "_",
    ".",
    "/",
    "rvr_",
    "00-",
    "@",
    "a.",
    "\n",
]


def test_no_pattern_takes_longer_than_in_proportion() -> None:
    """By ratio, so that a slow machine fails nothing; and what looks slow is measured once more."""
    patterns = all_patterns()
    assert len(patterns) > 8
    slow = []
    for name, pattern in patterns.items():
        for pump in PUMPS:
            for first, last in (("", ""), ("wait", "!"), ("a" * 64, "\0"), ("rvr_00000000_", "!"), ("wait=1", "x")):
                # Sixteen times the length: in proportion 16, if it grows by the square 256.
                short, long = (first + pump * (size // len(pump)) + last for size in (2000, 32_000))
                if all(matching_s(pattern, long) > 64 * max(matching_s(pattern, short), 5e-6) for _ in range(3)):
                    slow.append((name, pump))
    assert not slow


def test_the_measure_knows_a_slow_pattern() -> None:
    spaces = re.compile(r"\s+$")
    assert matching_s(spaces, " " * 8000 + "!") > 64 * matching_s(spaces, " " * 500 + "!")


def matching_s(pattern: "re.Pattern[str]", text: str) -> float:
    """Of this thread's own time: others use the processor too."""

    def once() -> float:
        began = time.thread_time()
        _ = pattern.search(text), pattern.fullmatch(text), pattern.match(text)
        return time.thread_time() - began

    return min(once() for _ in range(3))


def test_no_header_that_a_pattern_reads_takes_longer_than_in_proportion(http: httpx.Client) -> None:
    """By the time of this process, in which the gateway runs: what else the machine does takes none of it."""

    def asking_s(name: str, value: str) -> float:
        began = time.process_time()
        http.post("/generate", json=GOOD, headers={name: value})
        return time.process_time() - began

    for name in ("Prefer", "If-None-Match", "Last-Event-ID", "traceparent", "Authorization", "X-Request-Id"):
        for pump in (" ", ",", "wait=", "; ", "W/", '"'):
            short, long = ("a" + pump * (size // len(pump)) + "a" for size in (120, 12_000))
            # A hundred times the length: in proportion less than a hundred, as a request costs more than its header; if
            # it grows by the square, some hundreds of times.
            least_s = min(asking_s(name, short) for _ in range(3))
            assert any(asking_s(name, long) < 40 * least_s for _ in range(5)), (name, pump)


class Bomb:
    """What unpickling it would do."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self._marker), "w")


@pytest.fixture
def exploded(tmp_path: Path) -> Path:
    marker = tmp_path / "exploded"
    pickle.loads(pickle.dumps(Bomb(marker))).close()
    assert marker.exists(), "the bomb is a dud"
    marker.unlink()
    return marker


def test_nothing_in_redis_is_unpickled(
    start_gateway: Callable[..., httpx.Client], worker: FakeWorker, valkey: ValkeyHandle, exploded: Path
) -> None:
    """Whoever can write to Redis can stop jobs, and can run nothing in the gateway."""
    http, bomb = start_gateway(stream_s=0.1), pickle.dumps(Bomb(exploded))
    assert http.get("/models").status_code == 200
    fields: dict[str, dict[str, bytes]] = {
        "data": {"data": bomb},
        "meta": {"meta": bomb},
        "all": dict.fromkeys(("data", "meta", "created_at", "status", "exc_info", "result", "reverie_owner"), bomb),
    }
    for written in fields.values():
        job = http.post("/generate", json=GOOD).json()["id"]
        valkey.client.hset(job_key(job), mapping=written)  # type: ignore[arg-type]
        ask_everything(http, job)
    job = http.post("/generate", json=GOOD).json()["id"]
    valkey.client.xadd(results_key(job), {"type": 1, "return_value": bomb, "exc_string": bomb})
    valkey.client.set(progress_key(job), bomb)
    valkey.client.hset(job_key(job), "status", "finished")
    ask_everything(http, job)
    valkey.client.set(CATALOGUE_KEY, bomb)
    for key in ("reverie:worker:bad", "reverie:turn"):
        valkey.client.set(key, bomb)
    http.get("/models")
    assert not exploded.exists()
    assert http.get("/livez").status_code == 200


def ask_everything(http: httpx.Client, job: str) -> None:
    for path in (f"/jobs/{job}", f"/jobs/{job}/events", f"/jobs/{job}/images/0"):
        answer = http.get(path)
        assert answer.status_code in (200, 404, 409, 410, 500), answer.text
        assert "Traceback" not in answer.text
    http.delete(f"/jobs/{job}")

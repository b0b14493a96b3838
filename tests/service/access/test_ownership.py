"""What belongs to a key does not exist for another one: asked of every route that the application has."""

from collections.abc import Iterable, Iterator
from io import BytesIO

import httpx
import pytest
from fastapi.routing import APIRoute
from PIL import Image
from starlette.routing import BaseRoute, Mount, Route

from service.access.api_key import Scope
from service.access.guard import PUBLIC_FOLDERS, is_public, scope_for
from service.app import connect, create_app
from service.settings import Settings
from tests.conftest import ValkeyHandle
from tests.service.access.conftest import Keys, bearer
from tests.service.fake_worker import FakeWorker

BODY = {"steps": 5, "batch": 1, "seed": 7}

OWNED = {
    # of a job: for others it does not exist
    ("GET", "/jobs/{job_id}"),
    ("DELETE", "/jobs/{job_id}"),
    ("GET", "/jobs/{job_id}/events"),
    ("GET", "/jobs/{job_id}/images/{index}"),
    ("GET", "/jobs/{job_id}/grid"),
    ("GET", "/jobs/{job_id}/animation"),
    ("GET", "/jobs/{job_id}/receipt"),
    ("GET", "/jobs/{job_id}/webhooks"),
    # of an upload, by all who have sent that picture
    ("GET", "/uploads/{sha256}"),
}
SHARED = {
    # the same for everybody who has a key, or makes what is the caller's own
    ("GET", "/models"),
    ("GET", "/models/{name}"),
    ("POST", "/generate"),
    ("POST", "/uploads"),
    ("POST", "/v1/images/generations"),
    ("GET", "/webhooks/secret"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
    # the framework's own, of no use here
    ("GET", "/docs/oauth2-redirect"),
}
ADMINS = {("GET", "/metrics")}
PUBLIC = {("GET", path) for path in ("/", "/page/{name:path}", "/livez", "/readyz", "/docs", "/openapi.json")}


def routes_of(routes: Iterable[BaseRoute]) -> Iterator[tuple[str, str]]:
    """Method and path of each route, those of included routers too."""
    for route in routes:
        included = getattr(route, "original_router", None)
        if included is not None:
            yield from routes_of(included.routes)
        elif isinstance(route, Mount):
            yield "MOUNT", route.path
        else:
            assert isinstance(route, Route | APIRoute), f"a kind of route that this test does not know: {route!r}"
            yield from ((method, route.path) for method in route.methods or () if method != "HEAD")


def test_every_route_has_a_rule(valkey: ValkeyHandle) -> None:
    """A new route fails here until it is said above whose it is."""
    settings = Settings(redis_url=valkey.url)
    app = create_app(settings, connect(settings))
    found = set(routes_of(app.routes))
    described = {(method.upper(), path) for path, operations in app.openapi()["paths"].items() for method in operations}
    assert described <= found, "there are routes that the walk above does not find"
    mounts = {path for method, path in found if method == "MOUNT"}
    assert {*(path + "/" for path in mounts), "/page/"} == set(PUBLIC_FOLDERS)
    rules = OWNED | SHARED | ADMINS | PUBLIC
    assert {(method, path) for method, path in found if method != "MOUNT"} == rules
    assert all(is_public(path) == ((method, path) in PUBLIC) for method, path in rules)
    assert {rule for rule in rules if scope_for(*rule) is Scope.ADMIN} == ADMINS
    with_parameter = {(method, path) for method, path in rules if "{" in path}
    assert with_parameter - OWNED - PUBLIC == {("GET", "/models/{name}"), ("GET", "/v1/models/{name}")}


def test_every_route_but_the_public_ones_needs_a_key(keyed: httpx.Client) -> None:
    for method, path in OWNED | SHARED | ADMINS:
        answer = keyed.request(method, path.format(job_id="0" * 32, index=0, name="digits", sha256="0" * 64))
        assert answer.status_code == 401, (method, path)


@pytest.mark.parametrize("state", ["queued", "running", "succeeded", "failed", "canceled"])
def test_a_job_of_another_key_does_not_exist(keyed: httpx.Client, keys: Keys, worker: FakeWorker, state: str) -> None:
    path = job_in(state, keyed, keys, worker)
    own, absent = f"/jobs/{path}", "/jobs/" + "0" * 32
    for method, template in sorted(rule for rule in OWNED if rule[1].startswith("/jobs/")):
        tail = template.removeprefix("/jobs/{job_id}").replace("{index}", "0")
        others = keyed.request(method, own + tail, headers=bearer(keys.bob))
        nobodys = keyed.request(method, absent + tail, headers=bearer(keys.bob))
        assert others.status_code == 404, template
        # Nor can it be told from one that never was.
        assert others.text.replace(path, "0" * 32) == nobodys.text
        assert others.headers.keys() == nobodys.headers.keys()
    status = keyed.get(own, headers=bearer(keys.alice)).json()["status"]
    assert status == state, "another's DELETE changed it"
    for key in (keys.alice, keys.reader, keys.admin):
        assert keyed.get(own, headers=bearer(key)).status_code == 200
        assert keyed.get(own + "/events", headers=bearer(key)).status_code == 200
        images = keyed.get(own + "/images/0", headers=bearer(key)).status_code
        assert images == (200 if state == "succeeded" else 409)


def test_an_upload_is_of_those_who_sent_the_picture(keyed: httpx.Client, keys: Keys) -> None:
    def send(key: str) -> httpx.Response:
        headers = {**bearer(key), "Content-Type": "image/png"}
        return keyed.post("/uploads", content=png((1, 2, 3)), headers=headers)

    def statuses(path: str) -> list[int]:
        own = (keys.alice, keys.reader, keys.admin, keys.bob)
        return [keyed.get(path, headers=bearer(key)).status_code for key in own]

    path = send(keys.alice).json()["url"]
    assert statuses(path) == [200, 200, 200, 404]
    others, nobodys = (keyed.get(p, headers=bearer(keys.bob)) for p in (path, "/uploads/" + "0" * 64))
    assert others.text.replace(path.removeprefix("/uploads/"), "0" * 64) == nobodys.text
    assert send(keys.bob).json()["url"] == path
    assert statuses(path) == [200, 200, 200, 200]


def png(colour: tuple[int, int, int]) -> bytes:
    data = BytesIO()
    Image.new("RGB", (8, 8), colour).save(data, "PNG")
    return data.getvalue()


def job_in(state: str, http: httpx.Client, keys: Keys, worker: FakeWorker) -> str:
    job_id = str(http.post("/generate", json=BODY, headers=bearer(keys.alice)).json()["id"])
    if state == "canceled":
        http.delete(f"/jobs/{job_id}", headers=bearer(keys.alice))
    elif state != "queued":
        job = worker.take()
        if state == "succeeded":
            worker.succeed(job)
        elif state == "failed":
            worker.fail(job, '{"code": "x", "detail": "y"}')
    return job_id


def test_two_owners_may_choose_the_same_idempotency_key(keyed: httpx.Client, keys: Keys) -> None:
    def post(key: str, seed: int) -> httpx.Response:
        return keyed.post("/generate", json={**BODY, "seed": seed}, headers={**bearer(key), "Idempotency-Key": "k"})

    first, others = post(keys.alice, 1), post(keys.bob, 2)
    assert first.status_code == others.status_code == 202
    assert first.json()["id"] != others.json()["id"]
    assert post(keys.alice, 1).json()["id"] == first.json()["id"]
    assert post(keys.bob, 1).status_code == 422


def test_what_was_queued_while_keys_were_off_is_the_admins(http: httpx.Client, keyed: httpx.Client, keys: Keys) -> None:
    old = http.post("/generate", json=BODY).json()["id"]
    assert keyed.get(f"/jobs/{old}", headers=bearer(keys.alice)).status_code == 404
    assert keyed.get(f"/jobs/{old}", headers=bearer(keys.admin)).status_code == 200
    own = keyed.post("/generate", json=BODY, headers=bearer(keys.alice)).json()["id"]
    assert http.get(f"/jobs/{own}").status_code == 200, "and while they are off everything is everybody's"


def test_an_owner_is_told_only_of_its_own_in_the_queue(keyed: httpx.Client, keys: Keys) -> None:
    """No answer names another key or its jobs."""
    answers = [keyed.post("/generate", json=BODY, headers=bearer(key)) for key in (keys.alice, keys.bob)]
    ids = [answer.json()["id"] for answer in answers]
    assert ids[0] not in answers[1].text
    assert "alice" not in answers[1].text

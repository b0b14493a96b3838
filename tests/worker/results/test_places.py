"""What every place for files promises: Redis, a folder and S3 alike."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import obstore
import pytest

from tests.conftest import ValkeyHandle
from tests.worker.results.conftest import Place
from worker.contract.environment import EnvironmentSettings, SettingsError
from worker.results.address import ResultsAddress
from worker.results.files import AsyncFiles, File, Kept
from worker.results.names import image_file, job_folder, upload_file
from worker.results.object_files import ObjectFiles
from worker.results.objects import open_store

FOLDER = job_folder("ab" * 16, "cd" * 16)
NAMES = [image_file(FOLDER, index, "png") for index in range(3)]
UPLOAD = upload_file("ef" * 32, "png")


def of_gateway(place: Place, act: Callable[[AsyncFiles], Awaitable[Any]]) -> Any:
    async def run() -> Any:
        files, client = place.open_async()
        async with client:
            return await act(files)

    return asyncio.run(run())


def test_what_one_side_keeps_both_read_until_it_expires(place: Place, valkey: ValkeyHandle) -> None:
    big = bytes(range(256)) * 40_000
    assert place.files.put([File(name, big + name.encode(), 100) for name in NAMES]) == [None] * 3
    of_gateway(place, lambda files: files.put([File(UPLOAD, b"picture", 50)]))
    assert [place.files.get(name) for name in (NAMES[1], UPLOAD)] == [big + NAMES[1].encode(), b"picture"]
    kept = of_gateway(place, lambda files: files.get(NAMES[2]))
    assert kept == Kept(big + NAMES[2].encode(), kept.ttl_ms)
    assert 90_000 < kept.ttl_ms <= 100_000
    assert 40_000 < of_gateway(place, lambda files: files.ttl_ms(UPLOAD)) <= 50_000
    for witness in place.files.witnesses([UPLOAD]):
        valkey.client.pexpire(witness, 1)
    time.sleep(0.01)
    assert place.files.get(UPLOAD) is None
    assert of_gateway(place, lambda files: files.get(UPLOAD)) is None
    assert of_gateway(place, lambda files: files.ttl_ms(UPLOAD)) < 0
    assert place.files.get(NAMES[1]) is not None


def test_what_never_was_is_none_and_can_be_deleted(place: Place) -> None:
    assert place.files.get(NAMES[0]) is None
    assert of_gateway(place, lambda files: files.get(NAMES[0])) is None
    place.files.delete(NAMES)
    assert not place.files.keep_on(NAMES, 10)
    assert place.files.put([]) == []
    place.files.delete([])


def test_a_file_is_kept_on_if_it_is_still_there_and_never_shortened(place: Place, valkey: ValkeyHandle) -> None:
    place.files.put([File(NAMES[0], b"x", 50), File(UPLOAD, b"y", 50)])

    def ttls() -> list[int]:
        return [int(valkey.client.ttl(key)) for key in place.files.witnesses([NAMES[0], UPLOAD])]

    assert place.files.keep_on([NAMES[0], UPLOAD], 100)
    assert all(90 < ttl <= 100 for ttl in ttls())
    assert of_gateway(place, lambda files: files.keep_on([NAMES[0]], 10))
    assert all(90 < ttl <= 100 for ttl in ttls())
    gone = image_file(job_folder("ab" * 16, "ee" * 16), 0, "png")
    assert not place.files.keep_on([NAMES[0], gone], 200)
    assert not of_gateway(place, lambda files: files.keep_on([UPLOAD, gone], 200))
    assert all(90 < ttl <= 100 for ttl in ttls()), "all or none"


def test_the_witnesses_of_files_are_there_as_long_as_the_files(place: Place, valkey: ValkeyHandle) -> None:
    witnesses = place.files.witnesses(NAMES)
    assert not any(valkey.client.exists(key) for key in witnesses)
    place.files.put([File(name, b"x", 100) for name in NAMES])
    assert all(0 < valkey.client.ttl(key) <= 100 for key in witnesses)


def test_a_file_that_is_deleted_is_gone_and_its_neighbours_stay(place: Place) -> None:
    place.files.put([File(name, b"x", 100) for name in NAMES])
    place.files.delete(NAMES[:2])
    assert [place.files.get(name) for name in NAMES] == [None, None, b"x"]


def test_outside_of_redis_no_bytes_of_a_file_are_in_redis(place: Place, valkey: ValkeyHandle) -> None:
    secret = b"these bytes are a picture" * 100
    place.files.put([File(NAMES[0], secret, 100)])
    of_gateway(place, lambda files: files.put([File(UPLOAD, secret, 100)]))
    sizes = [valkey.client.strlen(key) for key in valkey.all_keys()]
    assert (max(sizes) > 1000) == (place.address == "redis://")


def test_a_link_gives_the_file_to_anybody_for_a_while_where_there_are_links(place: Place) -> None:
    place.files.put([File(NAMES[0], b"drawn", 100)])
    link = of_gateway(place, lambda files: files.link(NAMES[0], 60))
    if place.address.startswith("s3:"):
        answer = httpx.get(link)
        assert (answer.content, answer.headers["Content-Type"]) == (b"drawn", "image/png")
        assert "something" not in link  # the secret
    else:
        assert link is None


def test_the_sweep_deletes_what_has_expired_and_nothing_else(place: Place, valkey: ValkeyHandle) -> None:
    if place.address == "redis://":
        pytest.skip("files in Redis expire by themselves")
    store, later = open_store(place.address), time.time() + 601
    lost = image_file(job_folder("ab" * 16, "ee" * 16), 0, "png")
    foreign = ["jobs/notes.txt", "holiday.jpg", "uploads/readme/photo.png", f"jobs/{'ab' * 16}/mine/0.png"]

    for name in foreign:
        obstore.put(store, name, b"somebody else's")
    place.files.put([File(NAMES[0], b"kept", 100), File(lost, b"lost", 100), File(UPLOAD, b"picture", 100)])
    assert place.files.sweep() == 0
    valkey.client.delete(*place.files.witnesses([lost, UPLOAD]))
    assert place.files.sweep() == 0, "just written: its key may be on its way"
    assert ObjectFiles(store, valkey.client, now=lambda: later).sweep() == 2
    left = {one["path"] for listed in obstore.list(store) for one in listed}
    assert left == {NAMES[0], *foreign}


def test_what_a_killed_process_was_just_writing_into_a_folder_is_swept(tmp_path: Path, valkey: ValkeyHandle) -> None:
    folder = tmp_path / "kept"
    store = open_store(f"file://{folder}")
    for name in (f"{NAMES[0]}#1", f"{UPLOAD}#23", "jobs/notes#1"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"half")
    assert [
        one for listed in obstore.list(store) for one in listed if "#" in one["path"] and "notes" not in one["path"]
    ] == []
    assert ObjectFiles(store, valkey.client).sweep() == 0, "it may be being written"
    assert ObjectFiles(store, valkey.client, now=lambda: time.time() + 601).sweep() == 2
    assert [path.name for path in folder.rglob("*#*")] == ["notes#1"]


def test_a_file_that_is_whole_before_the_sweep_has_looked_at_it_is_left(tmp_path: Path, valkey: ValkeyHandle) -> None:
    folder = tmp_path / "kept"
    store = open_store(f"file://{folder}")
    gone = folder / f"{NAMES[0]}#1"
    gone.parent.mkdir(parents=True)
    gone.symlink_to(tmp_path / "renamed a moment ago")
    assert ObjectFiles(store, valkey.client, now=lambda: time.time() + 601).sweep() == 0


class Rule(EnvironmentSettings):
    results: ResultsAddress = "redis://"


@pytest.mark.parametrize("address", ["redis://", "file:///srv/pictures", "s3://bucket", "s3://bucket/a/b"])
def test_an_address_names_one_of_the_places(address: str) -> None:
    assert Rule.read({"REVERIE_RESULTS": address}).results == address


@pytest.mark.parametrize(
    "address", ["redis://localhost:6379", "/srv", "file://srv", "file:", "s3://", "s3:///a", "s3://k:s@b", "gs://b"]
)
def test_any_other_address_is_refused_with_the_rule(address: str) -> None:
    with pytest.raises(SettingsError, match=r"REVERIE_RESULTS=.*need redis:// .*, file:///folder or s3://bucket"):
        Rule.read({"REVERIE_RESULTS": address})

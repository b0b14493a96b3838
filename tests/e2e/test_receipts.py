"""Pictures are drawn again from their receipts, by the whole product and by a store alone."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from service.client.connection import URL_VARIABLE
from tests.bundled_digits import digits_store
from tests.conftest import ValkeyHandle
from tests.e2e.conftest import Stack, running_stack
from tests.service.reverie_command import reverie
from worker.contract import ImageFormat
from worker.contract.keys import upload_key
from worker.contract.signing import new_key, verify

pytestmark = pytest.mark.slow

BODY: dict[str, Any] = {"seed": 7, "steps": 20, "batch": 3, "class_label": 3, "guidance_scale": 1.5}


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("key") / "key.pem"
    return path, new_key(path)


@pytest.fixture(scope="module")
def stack(
    valkey_session: ValkeyHandle, tmp_path_factory: pytest.TempPathFactory, key: tuple[Path, str]
) -> Iterator[Stack]:
    """Its receipts are signed."""
    folder = tmp_path_factory.mktemp("stack")
    with running_stack(valkey_session, folder, store=digits_store(folder), signing_key=key[0]) as stack:
        yield stack


def receipt_of(stack: Stack, **body: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """The job and its receipt."""
    job = stack.finished(stack.generate(**body))
    return job, stack.http.get(job["links"]["receipt"]).raise_for_status().json()


def test_a_receipt_says_how_the_pixels_came_to_be(stack: Stack, key: tuple[Path, str]) -> None:
    job, receipt = receipt_of(stack, **BODY)
    assert receipt["request"].items() >= BODY.items()
    assert receipt["request"]["version"] == job["version"]
    assert {name for name, value in receipt["request"].items() if value is None} == set()
    assert [image["sha256"] for image in receipt["images"]] == [image["sha256"] for image in job["images"]]
    assert receipt["weights_sha256"] == job["weights_sha256"]
    assert receipt["components"].keys() >= {"unet"}
    computed = receipt["computation"]
    assert (computed["device"], computed["dtype"], computed["exact"]) == ("cpu", job["dtype"], True)
    assert computed["versions"].keys() >= {"reverie", "torch", "diffusers"}
    assert verify(receipt) == key[1]


def test_equal_requests_have_equal_receipts_to_the_byte(stack: Stack) -> None:
    def drawn_anew() -> bytes:
        job = stack.http.post("/generate", json=BODY, headers={"Cache-Control": "no-cache"}).json()
        return stack.http.get(stack.finished(job["id"])["links"]["receipt"]).content

    assert drawn_anew() == drawn_anew()


def test_a_receipt_is_drawn_again_by_a_gateway(stack: Stack, tmp_path: Path) -> None:
    _, receipt = receipt_of(stack, **BODY, sampler="ddpm")
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(receipt))
    done = reverie("replay", str(path), "--url", str(stack.http.base_url))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"image {i}, seed {7 + i}: the same" for i in range(3)]


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_a_picture_found_on_a_disk_is_drawn_again(stack: Stack, tmp_path: Path, image_format: ImageFormat) -> None:
    job = stack.finished(stack.generate(**BODY, format=image_format.value))
    found = tmp_path / f"found.{image_format.extension}"
    found.write_bytes(stack.images(job)[2])
    done = reverie("replay", str(found), "--url", str(stack.http.base_url), "--json", "--out", str(tmp_path / "again"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == [{"index": 0, "seed": 9, "same": True}]
    (again,) = (tmp_path / "again").iterdir()
    with Image.open(found) as first, Image.open(again) as second:
        assert first.tobytes() == second.tobytes()
        assert hashlib.sha256(first.convert("L").tobytes()).hexdigest() == job["images"][2]["sha256"]


def test_the_address_of_a_receipt_or_picture_will_do(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(URL_VARIABLE, str(stack.http.base_url))
    job = stack.finished(stack.generate(**BODY))
    for link in (job["links"]["receipt"], job["images"][0]["url"]):
        assert reverie("replay", f"{stack.http.base_url}{link}").returncode == 0


def test_other_pixels_are_told_with_what_may_be_the_reason(stack: Stack, tmp_path: Path) -> None:
    _, receipt = receipt_of(stack, **BODY)
    del receipt["signature"]
    receipt["images"][1]["sha256"] = "0" * 64
    receipt["computation"]["versions"]["torch"] = "1.0"
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(receipt))
    done = reverie("replay", str(path), "--url", str(stack.http.base_url))
    assert done.returncode == 3
    assert done.stdout.splitlines()[:3] == [
        "image 0, seed 7: the same",
        "image 1, seed 8: DIFFERENT",
        "image 2, seed 9: the same",
    ]
    assert "computation.versions" in done.stdout


def test_a_version_that_is_gone_is_named(stack: Stack, tmp_path: Path) -> None:
    _, receipt = receipt_of(stack, **BODY)
    del receipt["signature"]
    receipt["request"]["version"] = "000000001-0123abcd"
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(receipt))
    for options in (("--url", str(stack.http.base_url)), ("--alone",)):
        done = reverie("replay", str(path), *options)
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert line.startswith("reverie: ")
        assert "000000001-0123abcd" in line or "unknown version of digits" in line


def test_a_receipt_that_was_changed_is_not_drawn(stack: Stack, tmp_path: Path) -> None:
    _, receipt = receipt_of(stack, **BODY)
    receipt["request"]["seed"] = 8
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(receipt))
    done = reverie("replay", str(path), "--url", str(stack.http.base_url))
    assert (done.returncode, done.stderr) == (1, f"reverie: {path}: it is not what was signed\n")


def picture_file(path: Path, fill: int) -> Path:
    Image.frombytes("L", (8, 8), bytes((fill + 3 * place) % 256 for place in range(64))).save(path)
    return path


def test_what_began_at_a_picture_is_drawn_again_with_its_file(stack: Stack, tmp_path: Path) -> None:
    """By a gateway; and by a store alone, without gateway, queue or network: from the picture and the checkpoints."""
    begun, mask, other = (picture_file(tmp_path / f"{fill}.png", fill) for fill in (7, 90, 200))
    named = [
        stack.http.post("/uploads", content=path.read_bytes(), headers={"Content-Type": "image/png"}).json()
        for path in (begun, mask)
    ]
    body = BODY | {"batch": 2, "init_image": named[0]["sha256"], "mask": named[1]["sha256"], "strength": 0.6}
    job, receipt = receipt_of(stack, **body)
    path = tmp_path / "receipt.json"
    path.write_text(json.dumps(receipt))
    missing = reverie("replay", str(path), "--alone", "--mask", str(mask))
    assert missing.returncode == 1
    assert missing.stderr.startswith("reverie: it was drawn from a picture that the receipt names by its hash alone")
    assert f"(init_image {named[0]['sha256']}): give its file with --init-image FILE" in missing.stderr
    wrong = reverie("replay", str(path), "--alone", "--mask", str(mask), "--init-image", str(other))
    assert (wrong.returncode, "is another picture than the receipt's" in wrong.stderr) == (1, True)
    files = ("--init-image", str(begun), "--mask", str(mask))
    found, store = tmp_path / "found.png", digits_store(tmp_path)
    found.write_bytes(stack.images(job)[1])
    alone = reverie("replay", str(found), "--store", str(store), "--out", str(tmp_path / "again"), *files)
    assert (alone.returncode, alone.stdout) == (0, "image 0, seed 8: the same\n"), alone.stderr
    (again,) = (tmp_path / "again").iterdir()
    with Image.open(found) as first, Image.open(again) as second:
        assert first.tobytes() == second.tobytes()
    for upload in named:  # as when it has expired
        stack.redis.delete(upload_key(upload["sha256"]))
    expired = reverie("replay", str(path), "--url", str(stack.http.base_url))
    assert (expired.returncode, "upload the picture again" in expired.stderr) == (1, True)
    uploaded = reverie("replay", str(path), "--url", str(stack.http.base_url), *files)
    assert (uploaded.returncode, uploaded.stderr) == (0, "")
    assert uploaded.stdout.splitlines() == ["image 0, seed 7: the same", "image 1, seed 8: the same"]

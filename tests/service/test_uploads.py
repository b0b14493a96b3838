"""What POST /uploads promises: a picture by its content, upright and bare, named by its pixels; all else is refused."""

import asyncio
import base64
import hashlib
import struct
import time
import zlib
from collections.abc import Callable
from contextlib import suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from redis.asyncio import Redis as AsyncRedis

from service.errors import PROBLEM_MEDIA_TYPE, PictureRefused, UploadsFull
from service.pictures import read_picture
from service.upload_room import RESERVED_S, UploadRoom
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import FakeWorker
from tests.waiting import wait_until
from worker.contract.keys import PICTURES_KEY, upload_key
from worker.results.redis_files import RedisFiles
from worker.results.uploads import Upload, UploadGone, Uploads, picture_sha256

TURN = 0x0112
"""The EXIF tag of the orientation."""


def noise(mode: str = "RGB", size: tuple[int, int] = (9, 5)) -> Image.Image:
    width, height = size
    raw = hashlib.shake_256(f"{mode}{size}".encode()).digest(width * height * len(Image.new(mode, (1, 1)).getbands()))
    return Image.frombytes(mode, size, raw)


def file_of(picture: Image.Image, image_format: str = "PNG", **options: Any) -> bytes:
    buffer = BytesIO()
    picture.save(buffer, image_format, **options)
    return buffer.getvalue()


def send(http: httpx.Client, data: bytes, content_type: str = "application/octet-stream") -> httpx.Response:
    return http.post("/uploads", content=data, headers={"Content-Type": content_type})


def fetched(http: httpx.Client, answer: httpx.Response) -> Image.Image:
    assert answer.status_code == 201, answer.text
    png = http.get(answer.json()["url"])
    assert png.headers["Content-Type"] == "image/png"
    return Image.open(BytesIO(png.content))


def assert_refused(answer: httpx.Response, status: int, code: str) -> str:
    assert (answer.status_code, answer.headers["Content-Type"]) == (status, PROBLEM_MEDIA_TYPE), answer.text
    assert answer.json()["code"] == code
    return str(answer.json()["detail"])


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
def test_a_picture_is_kept_to_the_pixel_and_named_by_its_pixels(mode: str, http: httpx.Client) -> None:
    picture = noise(mode)
    answer = send(http, file_of(picture))
    kept = fetched(http, answer)
    assert (kept.mode, kept.tobytes()) == (mode, picture.tobytes())
    named = hashlib.sha256(f"{mode} 9x5\n".encode() + picture.tobytes()).hexdigest()
    assert answer.json() | {"expires_at": ""} == {
        "sha256": named,
        "width": 9,
        "height": 5,
        "url": f"/uploads/{named}",
        "expires_at": "",
    }
    assert answer.headers["Location"] == f"/uploads/{named}"


def test_one_picture_has_one_name_in_any_file_and_however_it_is_sent(http: httpx.Client) -> None:
    picture = noise()
    as_png, as_webp = file_of(picture), file_of(picture, "WEBP", lossless=True)
    answers = [
        send(http, as_png, "image/png"),
        send(http, as_webp, "image/jpeg"),  # what a client says of it counts for nothing
        send(http, file_of(picture, "BMP")),
        http.post("/uploads", files={"file": ("../../etc/passwd", as_png, "text/html")}),
    ]
    assert {answer.json()["sha256"] for answer in answers} == {picture_sha256(picture)}
    assert [answer.status_code for answer in answers] == [201] * 4


@pytest.mark.parametrize(
    ("orientation", "back"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (5, Image.Transpose.TRANSPOSE),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
def test_a_picture_is_turned_as_its_exif_says_and_carries_nothing_along(
    orientation: int, back: Image.Transpose, http: httpx.Client
) -> None:
    exif = Image.Exif()
    exif[TURN] = orientation
    exif[0x010E] = "where I live"
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "who I am")
    answer = send(http, file_of(noise(), exif=exif, pnginfo=text, icc_profile=b"a profile", dpi=(72, 72)))
    kept = fetched(http, answer)
    assert kept.transpose(back).tobytes() == noise().tobytes()
    assert kept.info == {}
    assert not kept.getexif()
    png = http.get(answer.json()["url"]).content
    assert not any(private in png for private in (b"where I live", b"who I am", b"a profile"))
    assert (answer.json()["width"], answer.json()["height"]) == kept.size


def test_palettes_masks_and_sixteen_bits_become_plain_pixels(http: httpx.Client) -> None:
    palette = noise().quantize(16)
    assert fetched(http, send(http, file_of(palette))).tobytes() == palette.convert("RGB").tobytes()
    clear = fetched(http, send(http, file_of(palette, transparency=3)))
    assert (clear.mode, clear.tobytes()) == ("RGBA", _with_clear(palette, 3).tobytes())
    mask = noise("L").convert("1")
    assert fetched(http, send(http, file_of(mask))).tobytes() == mask.convert("L").tobytes()
    deep = Image.frombytes("I;16", (3, 1), struct.pack("<3H", 0, 32768, 65535))
    assert fetched(http, send(http, file_of(deep))).tobytes() == bytes([0, 128, 255])


def _with_clear(palette: Image.Image, index: int) -> Image.Image:
    picture = palette.convert("RGBA")
    picture.putalpha(palette.point(lambda entry: 0 if entry == index else 255, "L"))
    return picture


def png_that_claims(width: int, height: int) -> bytes:
    """A few bytes that decode to so many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = [chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(bytes(99))), chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize("side", [4097, 10_000, 15_000, 2**31 - 1])
def test_a_decompression_bomb_is_refused_by_what_it_claims_to_be(side: int, http: httpx.Client) -> None:
    """Were it decoded, it would be refused for the data that it lacks."""
    assert "at most 16777216 pixels" in assert_refused(
        send(http, png_that_claims(side, side)), 422, "picture_too_large"
    )


def test_the_limits_are_the_settings(worker: FakeWorker, start_gateway: Callable[..., httpx.Client]) -> None:
    http = start_gateway(max_upload_pixels=45, max_upload_bytes=1000)
    assert send(http, file_of(noise())).status_code == 201
    assert "45 pixels, got 9 x 6" in assert_refused(send(http, file_of(noise(size=(9, 6)))), 422, "picture_too_large")
    assert "1000 bytes, got 1001" in assert_refused(send(http, bytes(1001)), 422, "picture_too_large")
    for answer in (send(http, bytes(5097)), http.post("/uploads", files={"file": bytes(5097)})):
        assert (answer.status_code, answer.headers["Content-Type"]) == (413, PROBLEM_MEDIA_TYPE)


@pytest.mark.parametrize("data", [b"", b"GIF89a", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%PDF-1.7", bytes(64)])
def test_what_is_no_picture_is_refused(data: bytes, http: httpx.Client) -> None:
    answer = send(http, data, "image/png")
    assert answer.status_code == 422
    assert answer.json()["code"] in ("not_a_picture", "picture_corrupted")


def test_formats_that_nobody_asked_for_are_not_even_tried(http: httpx.Client) -> None:
    for image_format in ("TIFF", "PPM", "ICO", "PDF", "EPS"):
        assert "PNG, JPEG" in assert_refused(send(http, file_of(noise(), image_format)), 422, "not_a_picture")


def test_a_picture_that_is_cut_off_or_damaged_is_refused(http: httpx.Client) -> None:
    for image_format in ("PNG", "JPEG", "WEBP"):
        whole = file_of(noise(size=(64, 64)), image_format)
        assert_refused(send(http, whole[: len(whole) // 2]), 422, "picture_corrupted")
    damaged = bytearray(file_of(noise()))
    damaged[60] ^= 0xFF
    assert_refused(send(http, bytes(damaged)), 422, "picture_corrupted")


@settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), image_format=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF", "BMP"]))
def test_any_damage_ends_in_a_picture_or_in_a_refusal(data: st.DataObject, image_format: str) -> None:
    whole = bytearray(file_of(noise(), image_format))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    with suppress(PictureRefused):  # and nothing else
        picture = read_picture(bytes(whole[: data.draw(st.integers(0, len(whole)))]), 10_000)
        with Image.open(BytesIO(picture.png)) as read:
            assert picture_sha256(read) == picture.sha256


def test_a_body_of_another_type_is_415_and_a_broken_form_400(http: httpx.Client) -> None:
    for content_type in ("application/json", "text/plain", "application/x-www-form-urlencoded"):
        assert_refused(send(http, file_of(noise()), content_type), 415, "unsupported_media_type")
    for form in ("multipart/form-data; boundary=y", "multipart/form-data"):
        assert_refused(send(http, b"--x\r\nbroken", form), 400, "bad_request")
    assert_refused(send(http, b"--y--\r\n", "multipart/form-data; boundary=y"), 422, "invalid_request")
    two = [("file", file_of(noise())), ("file", file_of(noise()))]
    assert_refused(http.post("/uploads", files=two), 400, "bad_request")
    assert_refused(http.post("/uploads", files={"file": b""}, data={"more": "fields"}), 400, "bad_request")


def test_an_upload_expires_and_each_use_lets_its_time_begin_anew(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], valkey: ValkeyHandle
) -> None:
    http = start_gateway(upload_ttl_s=100)
    answer = send(http, file_of(noise()))
    keys = [key for key in valkey.all_keys() if "upload" in key]
    assert len(keys) == 2

    def age() -> None:
        for key in keys:
            assert 90 <= valkey.client.ttl(key) <= 100, key
            valkey.client.expire(key, 50)

    age()
    assert send(http, file_of(noise(), "BMP")).json()["sha256"] == answer.json()["sha256"]
    age()
    fetched(http, answer)
    age()
    files = RedisFiles(valkey.client)
    read = Uploads(valkey.client, files).read(answer.json()["sha256"])
    assert (read.mode, read.tobytes()) == ("RGB", noise().tobytes())
    age()
    assert [key for key in valkey.all_keys() if "upload" in key] == keys, "one picture is kept once"


@pytest.mark.parametrize("lost", ["record", "file", "both", "changed", "cut off", "no picture"])
def test_an_upload_that_is_gone_is_told_as_such_and_can_be_sent_again(
    lost: str, http: httpx.Client, valkey: ValkeyHandle
) -> None:
    sha256 = send(http, file_of(noise())).json()["sha256"]
    file = next(key for key in valkey.all_keys() if key.endswith(".png"))
    if lost in ("record", "both"):
        valkey.client.delete(upload_key(sha256))
    if lost in ("file", "both"):
        valkey.client.delete(file)
    if lost == "changed":
        valkey.client.set(file, file_of(noise(size=(5, 9))), keepttl=True)
    if lost == "cut off":
        valkey.client.set(file, file_of(noise())[:-30], keepttl=True)
    if lost == "no picture":
        valkey.client.set(file, b"\x00" * 100, keepttl=True)
    with pytest.raises(UploadGone, match=f"{sha256} has expired or never was"):
        Uploads(valkey.client, RedisFiles(valkey.client)).read(sha256)
    assert "has expired" in assert_refused(http.get(f"/uploads/{sha256}"), 404, "upload_unknown")
    again = send(http, file_of(noise()))
    assert fetched(http, again).tobytes() == noise().tobytes()


def test_while_redis_is_away_an_upload_is_503(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], valkey: ValkeyHandle
) -> None:
    http = start_gateway(redis_timeout_s=0.3)
    valkey.kill()
    assert_refused(send(http, file_of(noise())), 503, "redis_unavailable")
    valkey.start()
    wait_until(lambda: send(http, file_of(noise())).status_code == 201, "the upload to be taken")


def test_all_uploads_together_have_a_limit(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], valkey: ValkeyHandle
) -> None:
    http = start_gateway(max_all_uploads_bytes=1000, upload_ttl_s=100)
    pictures = [noise("L", (20, 18 + extra)) for extra in range(4)]  # hardly compressible: some 450 bytes each
    first, second, third, fourth = (file_of(picture) for picture in pictures)
    assert [send(http, data).status_code for data in (first, second, first)] == [201] * 3
    refused = send(http, third)
    assert "the limit for all is 1000" in assert_refused(refused, 507, "uploads_full")
    assert 90 <= int(refused.headers["Retry-After"]) <= 101
    assert not [key for key in valkey.all_keys() if picture_sha256(pictures[2]) in key], "nothing is left of it"
    inline = "data:image/png;base64," + base64.b64encode(third).decode()
    assert http.post("/generate", json={"steps": 5, "batch": 1, "init_image": inline}).status_code == 507
    assert send(http, second).status_code == 201, "what is kept already needs no more room"

    # One goes; of the other only the count says so, as a worker has used it meanwhile.
    valkey.client.delete(upload_key(picture_sha256(pictures[0])))
    for picture in pictures[:2]:
        (member,) = (name for name in members_of(valkey) if name.startswith(picture_sha256(picture)))
        valkey.client.zadd(PICTURES_KEY, {member: 1})
    assert send(http, third).status_code == 201
    assert_refused(send(http, fourth), 507, "uploads_full")


def members_of(valkey: ValkeyHandle) -> list[str]:
    return [str(member, "ascii") for member in valkey.client.zrange(PICTURES_KEY, 0, -1) if isinstance(member, bytes)]


def test_a_picture_that_could_not_be_kept_takes_no_room(
    worker: FakeWorker, start_gateway: Callable[..., httpx.Client], valkey: ValkeyHandle, tmp_path: Path
) -> None:
    http = start_gateway(results=f"file://{tmp_path}/kept")
    (tmp_path / "kept" / "uploads").write_bytes(b"a file where a folder must be")
    assert send(http, file_of(noise())).status_code == 503
    assert valkey.client.zcard(PICTURES_KEY) == 0


def test_a_picture_that_two_send_at_once_is_counted_though_one_of_them_fails(valkey: ValkeyHandle) -> None:
    kept = Upload(sha256="a" * 64, file="a.png", width=5, height=4, size_bytes=60, ttl_s=3600)

    async def scenario() -> None:
        redis = AsyncRedis(unix_socket_path=str(valkey.socket))
        room = UploadRoom(redis, most_bytes=100, timeout_s=60)
        await room.reserve(kept.sha256, kept.size_bytes)
        await room.reserve(kept.sha256, kept.size_bytes)
        await room.keep(kept)
        await room.give_back(kept.sha256, kept.size_bytes)
        with pytest.raises(UploadsFull):
            await room.reserve("b" * 64, 60)
        await redis.aclose()

    asyncio.run(scenario())


def test_room_that_was_reserved_by_who_died_is_free_after_a_while(valkey: ValkeyHandle) -> None:
    async def scenario() -> None:
        redis = AsyncRedis(unix_socket_path=str(valkey.socket))
        room, reserved = UploadRoom(redis, most_bytes=100, timeout_s=60), f"{'a' * 64}:60"
        await room.reserve("a" * 64, 60)
        with pytest.raises(UploadsFull):
            await room.reserve("b" * 64, 60)
        ends_at = await redis.zscore(PICTURES_KEY, reserved)
        assert ends_at is not None
        assert ends_at <= time.time() + RESERVED_S + 60
        await redis.zadd(PICTURES_KEY, {reserved: 1})
        await room.reserve("b" * 64, 60)
        await redis.aclose()

    asyncio.run(scenario())

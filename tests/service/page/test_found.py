"""A picture found on a disk: dropped onto the page it is drawn again, and its pixels are compared."""

import hashlib
import io
import zlib
from base64 import b64encode
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from tests.service.fake_worker import VERSION, WEIGHTS, FakeWorker, request_of
from tests.service.page.conftest import Visit, png_of
from tests.service.page.test_accessibility import findings
from tests.service.page.test_page import take
from tests.worker.contract.test_receipts import COMPUTATION, SIGNER
from worker.contract import Guidance, ImageFormat, LabelCondition, SamplerName, SamplingRequest
from worker.contract.receipts import Provenance, ReceiptImage, canonical, receipt_of
from worker.outputs.image_files import EncodedImage, encode
from worker.outputs.picture_text import PictureText
from worker.outputs.receipt_writer import ReceiptWriter

Open = Callable[..., Visit]

SEED = 41
REQUEST = SamplingRequest(
    model="digits",
    version=VERSION,
    seed=SEED,
    steps=9,
    batch=1,
    sampler=SamplerName.EULER,
    karras=True,
    condition=LabelCondition(label=2),
    guidance=Guidance(scale=2.5, rescale=0.7),
)
PROVENANCE = Provenance(
    request=REQUEST,
    weights_sha256=WEIGHTS,
    components={"unet": "cd" * 32},
    plan_sha256="ef" * 32,
    computation=COMPUTATION,
)


def found(image_format: ImageFormat, provenance: Provenance = PROVENANCE, grey: int = SEED) -> EncodedImage:
    """As a worker writes it."""

    def describe(sha256: str, width: int, height: int) -> PictureText:
        image = ReceiptImage(index=0, seed=SEED, sha256=sha256, width=width, height=height)
        return ReceiptWriter(SIGNER).of_picture(provenance, image)

    return encode(np.full((8, 8, 1), grey, np.uint8), image_format, describe)


def hash_of_pixels(data: bytes) -> str:
    with Image.open(io.BytesIO(data)) as image:
        return hashlib.sha256(image.tobytes()).hexdigest()


RECEIPT = canonical(
    receipt_of(PROVENANCE, [ReceiptImage(index=0, seed=SEED, sha256=hash_of_pixels(png_of(SEED)), width=8, height=8)])
)


def drop(page: Page, name: str, data: bytes, onto: str = "h1") -> None:
    transfer = page.evaluate_handle(
        """([name, base64]) => {
            const transfer = new DataTransfer();
            transfer.items.add(new File([Uint8Array.from(atob(base64), (one) => one.charCodeAt(0))], name));
            return transfer;
        }""",
        [name, b64encode(data).decode()],
    )
    page.dispatch_event(onto, "dragover", {"dataTransfer": transfer})
    page.dispatch_event(onto, "drop", {"dataTransfer": transfer})


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_a_found_picture_is_drawn_again_to_the_bit(visit: Open, worker: FakeWorker, image_format: ImageFormat) -> None:
    worker.sha256_of = hash_of_pixels
    page = (opened := visit()).page
    name = f"found.{image_format.value}"
    data = found(image_format, PROVENANCE.model_copy(update={"request": webp_or_png(image_format)})).data
    if image_format is ImageFormat.PNG:
        drop(page, name, data)
    else:
        page.get_by_label("Open a found picture").set_input_files(
            {"name": name, "mimeType": "image/webp", "buffer": data}
        )
    panel = page.get_by_role("region", name="Drawn again")
    expect(panel).to_contain_text(f"{name} was drawn by digits, version {VERSION}")
    expect(panel).to_contain_text("which is still offered")
    expect(page.get_by_role("radio", name="two")).to_be_checked()
    fields = {"Seed": "41", "Steps": "9", "Images": "1", "Guidance": "2.5", "Guidance rescale": "0.7"}
    for label, value in (fields | {"Noise levels": "true"}).items():
        expect(page.get_by_label(label, exact=True)).to_have_value(value)
    expect(page.locator("#version")).to_have_value(VERSION)
    expect(page.locator("#sampler")).to_have_value("euler")
    expect(page.locator("#format")).to_have_value(image_format.value)
    job = take(worker)
    assert request_of(job) == webp_or_png(image_format)
    worker.succeed(job)
    expect(panel.get_by_role("status")).to_have_text("The same to the bit.")
    assert findings(page) == []
    expect(opened.jobs).to_have_count(1)
    panel.get_by_role("button", name="Close the found picture").click()
    expect(panel).to_be_hidden()


def webp_or_png(image_format: ImageFormat) -> SamplingRequest:
    return REQUEST.model_copy(update={"format": image_format})


def test_a_receipts_own_file_is_drawn_again(visit: Open, worker: FakeWorker) -> None:
    worker.sha256_of = hash_of_pixels
    page = visit().page
    drop(page, "digits-41-receipt.json", RECEIPT)
    panel = page.get_by_role("region", name="Drawn again")
    expect(panel).to_contain_text("digits-41-receipt.json is the receipt of what was drawn by digits")
    expect(panel.get_by_role("img", name="The picture")).to_have_count(0)
    job = take(worker)
    assert request_of(job) == REQUEST
    worker.succeed(job)
    expect(panel.get_by_role("status")).to_have_text("The same to the bit.")


def test_other_pixels_are_said_to_be_so_with_what_differs(visit: Open, worker: FakeWorker) -> None:
    worker.sha256_of = hash_of_pixels
    page = visit().page
    older = REQUEST.model_copy(update={"version": "000000001-00000000"})
    drop(page, "old.png", found(ImageFormat.PNG, PROVENANCE.model_copy(update={"request": older}), grey=9).data)
    panel = page.get_by_role("region", name="Drawn again")
    expect(panel).to_contain_text("no longer offered: the current version draws it instead")
    job = take(worker)
    assert request_of(job).version is None
    image = ReceiptImage(index=0, seed=SEED, sha256=hash_of_pixels(png_of(SEED)), width=8, height=8)
    worker.succeed(job, receipt=canonical(receipt_of(PROVENANCE, [image])).decode())
    expect(panel.get_by_role("status")).to_have_text("Not the same pixels.")
    lines = panel.get_by_role("listitem")
    expect(lines).to_have_text([f"request.version: 000000001-00000000 then, {VERSION} now"])


def test_what_carries_no_receipt_that_can_be_used_is_said(visit: Open, worker: FakeWorker) -> None:
    page = visit().page
    png, webp = found(ImageFormat.PNG).data, found(ImageFormat.WEBP).data
    elsewhere = PROVENANCE.model_copy(update={"request": REQUEST.model_copy(update={"model": "faces"})})
    for name, data, said in (
        ("notes.txt", b"no picture", "notes.txt is no PNG, no WebP and no receipt."),
        ("empty.png", b"", "empty.png is no PNG, no WebP and no receipt."),
        ("bare.png", png_of(1), "bare.png carries no receipt of Reverie."),
        ("bare.webp", encode(np.zeros((8, 8, 1), np.uint8), ImageFormat.WEBP).data, "carries no receipt of Reverie."),
        ("cut.png", png[:60], "it is damaged."),
        ("cut.webp", webp[:-40], "it is damaged."),
        ("turned.png", png.replace(b'"steps":9', b'"steps":8'), "it is damaged."),
        ("later.webp", webp.replace(b"receipt/1", b"receipt/2"), "of another release: reverie-receipt/2."),
        ("broken.webp", webp.replace(b'"images"', b'"im!ges"'), "The receipt in broken.webp is damaged."),
        ("bomb.png", with_compressed(b" " * 2**24), "it is damaged."),
        ("notes.json", b"[1]", "notes.json is no receipt of Reverie."),
        ("cut.json", RECEIPT[:-9], "The receipt in cut.json is damaged."),
        ("bytes.json", b"\xff\xfe{", "bytes.json is no receipt that can be read"),
        ("faces.png", found(ImageFormat.PNG, elsewhere).data, "faces is not offered here."),
    ):
        drop(page, name, data)
        expect(page.locator("#found").get_by_role("status")).to_contain_text(said)
        expect(page.locator("#found")).to_have_accessible_name("It can't be drawn again")
    expect(page.locator("#gallery > .job")).to_have_count(0)
    assert worker.queue_length() == 0


def with_compressed(text: bytes) -> bytes:
    """A PNG whose receipt is that text, as other tools compress long ones."""
    chunk = b"zTXtreverie\0\0" + zlib.compress(text)
    return png_of(1)[:33] + (len(chunk) - 4).to_bytes(4) + chunk + zlib.crc32(chunk).to_bytes(4) + png_of(1)[33:]


def test_a_picture_to_begin_at_is_none_to_draw_again(visit: Open, worker: FakeWorker) -> None:
    page = visit().page
    drop(page, "begin.png", found(ImageFormat.PNG).data, onto="#pictures .drop")
    expect(page.get_by_role("img", name="The picture to begin at")).to_be_visible()
    expect(page.locator("#found")).to_be_hidden()
    assert worker.queue_length() == 0

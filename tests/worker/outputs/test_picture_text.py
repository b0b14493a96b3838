"""What image files say of themselves, and that their pixels do not change by it."""

import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.worker.contract.test_receipts import PROVENANCE, SIGNER
from worker.contract import Guidance, ImageFormat, TextCondition
from worker.contract.receipts import EXIF_TAG, PNG_KEYWORD, ReceiptImage, canonical
from worker.contract.signing import verify
from worker.outputs.image_files import encode
from worker.outputs.picture_text import EXIF_FOLDER, PNG_PARAMETERS, UNICODE_COMMENT, USER_COMMENT, PictureText
from worker.outputs.receipt_writer import ReceiptWriter

PROMPT = "ein Fuchs, \u4f60\u597d: \U0001f98a \u201equoted\u201c"
ASKED = PROVENANCE.request.model_copy(
    update={
        "condition": TextCondition(prompt=PROMPT, negative_prompt="blurry, dark"),
        "guidance": Guidance(scale=3.0),
    }
)
WITH_PROMPT = PROVENANCE.model_copy(update={"request": ASKED})
PIXELS = np.random.default_rng(7).integers(0, 256, (8, 6, 3), dtype=np.uint8)


def describe(sha256: str, width: int, height: int) -> PictureText:
    image = ReceiptImage(index=1, seed=8, sha256=sha256, width=width, height=height)
    return ReceiptWriter(SIGNER).of_picture(WITH_PROMPT, image)


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_a_picture_carries_its_signed_receipt_and_the_same_pixels(image_format: ImageFormat) -> None:
    plain, described = encode(PIXELS, image_format), encode(PIXELS, image_format, describe)
    assert described.sha256 == plain.sha256
    with Image.open(io.BytesIO(described.data)) as image:
        found = image.info[PNG_KEYWORD] if image_format is ImageFormat.PNG else image.getexif()[EXIF_TAG]
        assert np.array_equal(np.asarray(image), PIXELS)
    receipt = json.loads(found)
    assert verify(receipt) == SIGNER.public_key
    assert receipt["request"]["prompt"] == PROMPT
    assert [image["sha256"] for image in receipt["images"]] == [described.sha256]
    assert canonical(receipt) == canonical(describe(described.sha256, 6, 8).receipt)


@pytest.mark.parametrize("image_format", list(ImageFormat))
def test_image_tools_find_the_parameters(image_format: ImageFormat) -> None:
    """As AUTOMATIC1111's web UI reads them: `read_info_from_image` and `parse_generation_parameters`."""
    with Image.open(io.BytesIO(encode(PIXELS, image_format, describe).data)) as image:
        if image_format is ImageFormat.PNG:
            text = image.info[PNG_PARAMETERS]
        else:
            comment = image.getexif().get_ifd(EXIF_FOLDER)[USER_COMMENT]
            assert comment.startswith(UNICODE_COMMENT)
            text = comment.removeprefix(UNICODE_COMMENT).decode("utf-16-be")
    prompt, negative, settings = text.split("\n")
    assert prompt == PROMPT
    assert negative == "Negative prompt: blurry, dark"
    found = dict(re.findall(r'\s*(\w[\w \-/]+):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)', settings))
    assert found["Steps"] == "50"
    assert found["Sampler"] == "ddim"
    assert found["CFG scale"] == "3.0"
    assert found["Seed"] == "8"
    assert found["Size"] == "6x8"
    assert found["Model"] == "digits"
    assert found["Model hash"] == "ab" * 5


def test_a_settings_value_cannot_end_it_early() -> None:
    receipt = dict(describe("0" * 64, 6, 8).receipt)
    receipt["request"] = {**receipt["request"], "odd": 'a, "b": c\nSteps: 9'}
    last = PictureText(receipt).parameters.split("\n")
    assert len(last) == 3
    assert r'Odd: "a, \"b\": c\nSteps: 9"' in last[2]

"""What a picture's receipt says: all that is needed to draw the same pixels again, and their hashes.

A receipt is a JSON document in the canonical form of RFC 8785, so that equal receipts are equal bytes. It names nothing
that differs when the same pixels are drawn again: no job, no time, no worker.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import rfc8785
from pydantic import JsonValue

from worker.contract.message import Message
from worker.contract.requests import LabelCondition, NoCondition, SamplingRequest, TextCondition

FORMAT = "reverie-receipt/1"
SIGNATURE = "signature"
"""The key of a signed receipt that the signature itself is under."""

DERIVED = {"area"}
"""What of a request follows from the rest of it and the model."""

PNG_KEYWORD = "reverie"
"""Of the iTXt chunk that a PNG carries its receipt in."""
EXIF_TAG = 0x010E
"""ImageDescription, where a WebP carries it."""

_CONDITIONS: Mapping[str, type[Message]] = {"class_label": LabelCondition, "prompt": TextCondition}
"""By the field of a public request that is there when the condition is."""
_PUBLIC_NAMES = {"label": "class_label"}
_GUIDANCE = "guidance_"


class Computation(Message):
    """What computed the pixels: another one of any of these may round in another way."""

    device: str
    """Its type: `cpu` or `cuda`."""
    processor: str
    """Of a CPU the instructions that its kernels use, of a GPU its name."""
    dtype: str
    form: str
    """How a batch ran, see `ModelInfo`."""
    exact: bool
    """Whether the pixels are those of every batch."""
    versions: dict[str, str]
    """By library."""


class Provenance(Message):
    """How the images of one request came to be."""

    request: SamplingRequest
    """With everything filled in that the model decided."""
    weights_sha256: str
    components: dict[str, str]
    """Hash of each component of the version, by its name."""
    plan_sha256: str
    """Of the tables of all legs."""
    computation: Computation


class ReceiptImage(Message):
    index: int
    seed: int
    sha256: str
    """Of the raw uint8 pixels, [H, W, C] in C order."""
    width: int
    height: int


class Signature(Message):
    algorithm: str
    public_key: str
    """Base64 of its 32 bytes."""
    value: str
    """Base64, of the canonical form of the receipt without its signature."""


class Receipt(Message):
    """The document."""

    format: str = FORMAT
    request: dict[str, JsonValue]
    """As POST /generate takes it."""
    weights_sha256: str
    components: dict[str, str]
    plan_sha256: str
    computation: Computation
    images: list[ReceiptImage]
    signature: Signature | None = None


def receipt_of(provenance: Provenance, images: Sequence[ReceiptImage]) -> dict[str, Any]:
    """The receipt of a request's images, not signed."""
    return _document(provenance, provenance.request, images)


def receipt_of_image(provenance: Provenance, image: ReceiptImage) -> dict[str, Any]:
    """The receipt of one image alone, as a request of its own: image i of seed s is image 0 of seed s + i."""
    request = provenance.request.model_copy(update={"seed": image.seed, "batch": 1})
    return _document(provenance, request, [image.model_copy(update={"index": 0})])


def canonical(document: Mapping[str, Any]) -> bytes:
    """RFC 8785: the same bytes for the same JSON document."""
    return rfc8785.dumps(dict(document))


def unsigned(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a signature is of."""
    return {name: value for name, value in document.items() if name != SIGNATURE}


def public_request(request: SamplingRequest) -> dict[str, Any]:
    """The request as POST /generate takes it. Every field is in it but those that do not apply, which are None."""
    fields = request.model_dump(mode="json", exclude=DERIVED)
    condition, guidance = fields.pop("condition"), fields.pop("guidance")
    del condition["kind"]
    flat = {
        **fields,
        **{_PUBLIC_NAMES.get(name, name): value for name, value in condition.items()},
        **{_GUIDANCE + name: value for name, value in guidance.items()},
    }
    return {name: value for name, value in flat.items() if value is not None}


def sampling_request(public: Mapping[str, Any]) -> SamplingRequest:
    """The inverse of `public_request`.

    Raises:
        pydantic.ValidationError: it is no such request, or one of a later release.
    """
    fields = dict(public)
    guidance = {name.removeprefix(_GUIDANCE): fields.pop(name) for name in list(fields) if name.startswith(_GUIDANCE)}
    condition: dict[str, Any] = {"kind": NoCondition().kind}
    for name, kind in _CONDITIONS.items():
        if name in fields:
            names = {_PUBLIC_NAMES.get(own, own): own for own in kind.model_fields}
            condition = {names[field]: fields.pop(field) for field in list(fields) if field in names}
            condition["kind"] = kind.model_fields["kind"].default
    return SamplingRequest.model_validate({**fields, "condition": condition, "guidance": guidance})


def parsed(text: str | bytes) -> dict[str, Any]:
    """A receipt's document, as it was written.

    Raises:
        ValueError: it is none.
    """
    document = json.loads(text)
    # A receipt of a later release of this format may say more.
    Receipt.model_validate(document, extra="ignore")
    if document["format"] != FORMAT:
        raise ValueError(f"need a receipt of the format {FORMAT}, got {document['format']!r}")
    return dict(document)


def _document(provenance: Provenance, request: SamplingRequest, images: Sequence[ReceiptImage]) -> dict[str, Any]:
    receipt = Receipt(
        request=public_request(request),
        weights_sha256=provenance.weights_sha256,
        components=provenance.components,
        plan_sha256=provenance.plan_sha256,
        computation=provenance.computation,
        images=list(images),
    )
    return receipt.model_dump(mode="json", exclude={SIGNATURE})

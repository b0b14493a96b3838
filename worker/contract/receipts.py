"""What a picture's receipt says: all that is needed to draw the same pixels again, and their hashes.

A receipt is a JSON document in the canonical form of RFC 8785, so that equal receipts are equal bytes. It names nothing
that differs when the same pixels are drawn again: no job, no time, no worker.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, get_args, get_origin

import rfc8785
from pydantic import JsonValue

from worker.contract.message import Message
from worker.contract.requests import NoCondition, SamplingRequest, TextCondition

FORMAT = "reverie-receipt/1"
SIGNATURE = "signature"
"""The key of a signed receipt that the signature itself is under."""

DERIVED = {"area", "refiner_cost", "later_steps", "later_row_steps"}
"""What of a request follows from the rest of it and the model, or says what it costs."""

PNG_KEYWORD = "reverie"
"""Of the iTXt chunk that a PNG carries its receipt in."""
EXIF_TAG = 0x010E
"""ImageDescription, where a WebP carries it."""

_KIND = "kind"
"""What tells the messages of a union apart; the names of their fields do so in public."""
_PREFIXES = {"guidance": "guidance_", "upscale": "upscale_"}
_PUBLIC_NAMES = {"label": "class_label", "picture": "init_image"}


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
    checked: bool | None = None
    """True where the version's safety checker saw the images, which makes those that it objects to black."""
    tile_px: int | None = None
    """Side of the overlapping tiles that an autoencoder decoded large images in; absent where it decoded them whole."""


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
    asked = provenance.request
    condition = asked.condition
    if isinstance(condition, TextCondition):
        condition = condition.of_image(image.index)
    request = asked.model_copy(update={"seed": image.seed, "batch": 1, "condition": condition})
    return _document(provenance, request, [image.model_copy(update={"index": 0})])


def canonical(document: Mapping[str, Any]) -> bytes:
    """RFC 8785: the same bytes for the same JSON document."""
    return rfc8785.dumps(dict(document))


def unsigned(document: Mapping[str, Any]) -> dict[str, Any]:
    """What a signature is of."""
    return {name: value for name, value in document.items() if name != SIGNATURE}


def public_request(request: SamplingRequest) -> dict[str, Any]:
    """The request as POST /generate takes it: flat. Every field is in it but those that do not apply: None, or empty
    for want of members."""
    flat: dict[str, Any] = {}
    for name, value in request.model_dump(mode="json", exclude=DERIVED).items():
        parts = {_public(name, part): inner for part, inner in value.items()} if isinstance(value, dict) else {}
        flat |= parts or {name: value}
    flat.pop(_KIND, None)
    if flat.get("prompts"):
        del flat["prompt"]  # which they stand in place of
    return {name: value for name, value in flat.items() if value is not None and value != []}


def sampling_request(public: Mapping[str, Any]) -> SamplingRequest:
    """The inverse of `public_request`.

    Raises:
        pydantic.ValidationError: it is no such request, or one of a later release.
    """
    fields = dict(public)
    nested: dict[str, Any] = {"condition": {_KIND: NoCondition().kind}}
    for name, field in SamplingRequest.model_fields.items():
        for kind in _messages_in(field.annotation):
            parts = {_public(name, part): part for part in kind.model_fields if part != _KIND}
            if found := {parts[key]: fields.pop(key) for key in list(fields) if key in parts}:
                tag = {_KIND: kind.model_fields[_KIND].default} if _KIND in kind.model_fields else {}
                nested[name] = {**found, **tag}
    return SamplingRequest.model_validate({**fields, **nested})


def _public(field: str, part: str) -> str:
    """What POST /generate calls a part of a nested field."""
    return _PREFIXES.get(field, "") + _PUBLIC_NAMES.get(part, part)


def _messages_in(annotation: Any) -> list[type[Message]]:
    if get_origin(annotation) is tuple:
        return []  # a list of such is public as it is
    kinds = get_args(annotation) or (annotation,)
    return [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, Message)]


def parsed(text: str | bytes) -> dict[str, Any]:
    """A receipt's document, as it was written.

    Raises:
        ValueError: it is none.
    """
    document = json.loads(text)
    # A receipt of a later release of this format may say more.
    Receipt.model_validate(document, extra="ignore")
    if document.get("format") != FORMAT:
        raise ValueError(f"need a receipt of the format {FORMAT}, got {document.get('format')!r}")
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
    return receipt.model_dump(mode="json", exclude={SIGNATURE}, exclude_none=True)

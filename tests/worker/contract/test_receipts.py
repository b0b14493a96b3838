"""Receipts: complete, canonical, and signed so that no byte can change."""

import base64
import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.worker.contract.any_request import any_request
from worker.contract import SamplingRequest, TextCondition
from worker.contract.receipts import (
    DERIVED,
    Computation,
    Provenance,
    ReceiptImage,
    canonical,
    parsed,
    public_request,
    receipt_of,
    receipt_of_image,
    sampling_request,
)
from worker.contract.signing import SignatureError, Signer, new_key, verify

COMPUTATION = Computation(
    device="cpu", processor="AVX2", dtype="float32", form="fast", exact=True, versions={"torch": "2.13.0"}
)
REQUEST = SamplingRequest(model="digits", version="000001200-e86921d4", seed=7, steps=50, batch=3)
IMAGES = [ReceiptImage(index=i, seed=7 + i, sha256=f"{i:064x}", width=8, height=8) for i in range(3)]
PROVENANCE = Provenance(
    request=REQUEST,
    weights_sha256="ab" * 32,
    components={"unet": "cd" * 32},
    plan_sha256="ef" * 32,
    computation=COMPUTATION,
)
SIGNER = Signer(Ed25519PrivateKey.generate())

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.floats(-1e15, 1e15) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@settings(UNHURRIED)
@given(st.dictionaries(st.text(), JSON, max_size=5), st.randoms())
def test_the_canonical_form_is_the_same_for_the_same_document(document: dict[str, Any], random: Any) -> None:
    names = list(document)
    random.shuffle(names)
    form = canonical(document)
    assert canonical({name: document[name] for name in names}) == form
    assert canonical(json.loads(form)) == form
    assert canonical(json.loads(json.dumps(document))) == form


@settings(UNHURRIED)
@given(any_request())
def test_a_receipts_request_is_the_whole_request(request: SamplingRequest) -> None:
    """A field that `public_request` or its inverse drops, or misnames, would come back as its default."""
    plain = request.model_copy(update={name: SamplingRequest.model_fields[name].default for name in DERIVED})
    assert sampling_request(public_request(request)) == plain


def test_an_images_receipt_has_its_own_prompt() -> None:
    condition = TextCondition(prompts=("a", "b", "c"), negative_prompt="d")
    provenance = PROVENANCE.model_copy(update={"request": REQUEST.model_copy(update={"condition": condition})})
    assert receipt_of(provenance, IMAGES)["request"]["prompts"] == ["a", "b", "c"]
    request = receipt_of_image(provenance, IMAGES[2])["request"]
    assert (request["prompt"], request["negative_prompt"], "prompts" in request) == ("c", "d", False)


def test_an_images_receipt_asks_for_that_image_alone() -> None:
    receipt = receipt_of_image(PROVENANCE, IMAGES[2])
    assert (receipt["request"]["seed"], receipt["request"]["batch"]) == (9, 1)
    assert receipt["images"] == [{**IMAGES[2].model_dump(), "index": 0}]


@settings(UNHURRIED)
@given(st.data())
def test_any_changed_byte_breaks_the_signature(data: st.DataObject) -> None:
    text = bytearray(canonical(SIGNER.sign(receipt_of(PROVENANCE, IMAGES))))
    place = data.draw(st.integers(0, len(text) - 1))
    text[place] = data.draw(st.integers(0, 255).filter(lambda byte: byte != text[place]))
    try:
        document = parsed(bytes(text))
    except ValueError:
        return  # no receipt any more
    with pytest.raises(SignatureError):
        verify(document, SIGNER.public_key)


def test_a_signature_names_its_key_and_holds() -> None:
    signed = SIGNER.sign(receipt_of(PROVENANCE, IMAGES))
    assert verify(signed) == SIGNER.public_key
    assert verify(json.loads(json.dumps(signed)), SIGNER.public_key) == SIGNER.public_key
    assert SIGNER.sign(signed) == signed, "a signature is of the receipt without its signature"


def test_another_key_or_none_is_told_apart() -> None:
    plain = receipt_of(PROVENANCE, IMAGES)
    other = Signer(Ed25519PrivateKey.generate())
    with pytest.raises(SignatureError, match="not signed"):
        verify(plain)
    with pytest.raises(SignatureError, match="signed by another key"):
        verify(other.sign(plain), SIGNER.public_key)
    forged = {**other.sign(plain)}
    forged["signature"] = {**forged["signature"], "public_key": SIGNER.public_key}
    with pytest.raises(SignatureError, match="not what was signed"):
        verify(forged, SIGNER.public_key)


@pytest.mark.parametrize(
    "signature",
    [
        "text",
        {},
        {"algorithm": "none", "public_key": "", "value": ""},
        {"algorithm": "Ed25519", "public_key": "AA==", "value": "AA=="},
        {"algorithm": "Ed25519", "public_key": 7, "value": None},
        {"algorithm": "Ed25519", "public_key": base64.b64encode(bytes(32)).decode(), "value": "not base64"},
    ],
)
def test_what_is_no_signature_is_refused(signature: object) -> None:
    with pytest.raises(SignatureError):
        verify({**receipt_of(PROVENANCE, IMAGES), "signature": signature})


def test_a_new_key_is_its_owners_alone_and_replaces_none(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    public_key = new_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Signer.read(path).public_key == public_key
    with pytest.raises(FileExistsError):
        new_key(path)


@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_can_t_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "key.pem"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"key\.pem"):
        Signer.read(path)


def test_a_receipt_of_a_later_release_is_read_and_another_format_is_not() -> None:
    later = {**receipt_of(PROVENANCE, IMAGES), "new": 1}
    assert parsed(json.dumps(later)) == later
    for broken in ("[]", "{}", "7", "\xff", json.dumps({**later, "format": "reverie-receipt/2"})):
        with pytest.raises(ValueError):  # noqa: PT011 - of several libraries
            parsed(broken)

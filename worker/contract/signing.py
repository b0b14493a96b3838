"""Signed receipts: Ed25519 over the canonical form. Signing and checking need no network and no secret of others.

SignatureError  it is not signed, not by that key, or not what was signed
"""

import base64
import binascii
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from worker.contract.receipts import SIGNATURE, Signature, canonical, unsigned

ALGORITHM = "Ed25519"


class SignatureError(ValueError):
    """The text is one line for people."""


class Signer:
    """Signs receipts with one private key."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key = public_text(key.public_key())

    @classmethod
    def read(cls, path: Path) -> "Signer":
        """From a file in PEM (PKCS 8), as `reverie receipt new-key` writes it.

        Raises:
            ValueError: it can't be read, or holds no such key.
        """
        try:
            key = serialization.load_pem_private_key(path.read_bytes(), password=None)
        except OSError as error:
            raise ValueError(f"can't read the signing key {path}: {error.strerror}") from error
        except (ValueError, TypeError, UnsupportedAlgorithm):
            raise ValueError(f"{path} holds no private key in PEM without a password") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise ValueError(f"{path} holds a key of another kind, need {ALGORITHM}")
        return cls(key)

    def sign(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """The receipt with its signature."""
        plain = unsigned(document)
        value = base64.b64encode(self._key.sign(canonical(plain))).decode()
        signature = Signature(algorithm=ALGORITHM, public_key=self.public_key, value=value)
        return {**plain, SIGNATURE: signature.model_dump()}


def new_key(path: Path) -> str:
    """Write a new private key to a file that only its owner can read; returns the public key.

    Raises:
        OSError: there is such a file, or it can't be written.
    """
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(pem)
    return public_text(key.public_key())


def verify(document: Mapping[str, Any], public_key: str | None = None) -> str:
    """Check a receipt; returns the public key that it is signed by.

    Args:
        public_key: the only one that will do; None: whichever it names.

    Raises:
        SignatureError
    """
    signature = document.get(SIGNATURE)
    if not isinstance(signature, dict):
        raise SignatureError("it is not signed")
    if set(signature) != set(Signature.model_fields) or signature["algorithm"] != ALGORITHM:
        raise SignatureError(f"its signature is of another kind, need {ALGORITHM}")
    named = signature["public_key"]
    if public_key is not None and named != public_key:
        raise SignatureError(f"it is signed by another key, {named}")
    try:
        key = Ed25519PublicKey.from_public_bytes(base64.b64decode(named, validate=True))
        # One text for one signature: a change that base64 would not see is a change.
        value = base64.b64decode(signature["value"], validate=True)
        if base64.b64encode(value).decode() != signature["value"] or public_text(key) != named:
            raise SignatureError("its signature is no base64")
        key.verify(value, canonical(unsigned(document)))
    except (InvalidSignature, binascii.Error, ValueError, TypeError) as error:
        if isinstance(error, SignatureError):
            raise
        raise SignatureError("it is not what was signed") from None
    return str(named)


def public_text(key: Ed25519PublicKey) -> str:
    return base64.b64encode(key.public_bytes_raw()).decode()

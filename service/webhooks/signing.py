"""Signatures of Standard Webhooks (standardwebhooks.com), version 1: HMAC-SHA256 over id, time and body."""

import base64
import binascii
import hashlib
import hmac

PREFIX = "whsec_"


class SigningSecret:
    """
    Args:
        text: `whsec_` and 24 to 64 bytes in base64.
    """

    def __init__(self, text: str) -> None:
        try:
            self._key = base64.b64decode(text.removeprefix(PREFIX), validate=True)
        except binascii.Error:
            self._key = b""
        if not text.startswith(PREFIX) or not 24 <= len(self._key) <= 64:
            raise ValueError(f"need {PREFIX} and 24 to 64 bytes in base64")

    def of(self, owner: str | None) -> "SigningSecret":
        """An owner's own, by which no other owner can sign; without an owner, this one."""
        if owner is None:
            return self
        derived = hmac.digest(self._key, b"reverie webhooks of " + owner.encode(), hashlib.sha256)
        return SigningSecret(PREFIX + base64.b64encode(derived).decode())

    def reveal(self) -> str:
        return PREFIX + base64.b64encode(self._key).decode()

    def headers(self, message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
        signed = f"{message_id}.{timestamp}.".encode() + body
        signature = base64.b64encode(hmac.digest(self._key, signed, hashlib.sha256)).decode()
        return {
            "webhook-id": message_id,
            "webhook-timestamp": str(timestamp),
            "webhook-signature": f"v1,{signature}",
        }

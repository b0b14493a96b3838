"""Uploaded pictures: what is known of one, the hash that names it, and how a worker reads it for a job."""

import hashlib
from io import BytesIO

import redis
from PIL import Image
from pydantic import Field, ValidationError

from worker.contract.keys import upload_key
from worker.contract.message import Message
from worker.contract.names import UPLOAD_NAME_PATTERN
from worker.results.files import Files

MODES = ("L", "RGB", "RGBA")
"""What uploads are converted to, in Pillow's words."""


class Upload(Message):
    """A picture that was uploaded, kept under `upload_key` until it expires."""

    sha256: str = Field(pattern=UPLOAD_NAME_PATTERN)
    file: str
    """Name of its kept file, a PNG."""
    width: int
    height: int
    size_bytes: int
    ttl_s: int
    """Each use keeps it for so long again."""


class UploadGone(LookupError):
    """The upload has expired, or never was; the message says what to do."""

    def __init__(self, sha256: str) -> None:
        super().__init__(f"upload {sha256} has expired or never was: upload the picture again")


def picture_sha256(picture: Image.Image) -> str:
    """The name of a picture: the hash of its mode and size, as in `RGB 640x480` and a line feed, then of its pixels.

    Of the pixels and not of a file: two files of one picture are one input, and a decoder that reads a file in another
    way gives another name.
    """
    header = f"{picture.mode} {picture.width}x{picture.height}\n"
    return hashlib.sha256(header.encode() + picture.tobytes()).hexdigest()


class Uploads:
    """A worker's access to the uploads that its jobs name."""

    def __init__(self, client: "redis.Redis", files: Files) -> None:
        self._client = client
        self._files = files

    def read(self, sha256: str) -> Image.Image:
        """The picture, decoded, of mode L, RGB or RGBA; its time begins anew.

        Raises:
            UploadGone: it expired while the job waited, say, or its file is damaged.
            redis.exceptions.RedisError: no answer.
            ResultsAway: the place for files does not answer.
        """
        upload = self._find(sha256)
        data = None if upload is None else self._files.get(upload.file)
        if upload is None or data is None:
            raise UploadGone(sha256)
        self._files.keep_on([upload.file], upload.ttl_s)
        self._client.expire(upload_key(sha256), upload.ttl_s)
        picture = _decoded(data)
        if picture is None or picture_sha256(picture) != sha256:
            # Another picture would be drawn upon, and nobody would know. Forgotten, so that it can be sent again.
            self._client.delete(upload_key(sha256))
            raise UploadGone(sha256)
        return picture

    def _find(self, sha256: str) -> Upload | None:
        record = self._client.get(upload_key(sha256))
        try:
            return Upload.model_validate_json(record) if isinstance(record, bytes) else None
        except ValidationError:
            return None


def _decoded(data: bytes) -> Image.Image | None:
    """None of bytes that are no whole PNG."""
    try:
        with Image.open(BytesIO(data), formats=["PNG"]) as picture:
            picture.load()
    except MemoryError:
        raise
    except Exception:  # decoders raise whatever the bytes provoke
        return None
    return picture

"""The pictures that a request names or carries, and the rules for what begins at one."""

import base64
import binascii
import re
from collections.abc import Mapping

from service.access.caller import Caller
from service.errors import FieldProblem, InvalidRequest, PictureRefused, UploadUnknown
from service.schemas import DEFAULT_STRENGTH, GenerateRequest
from service.shipped_settings import steps_of
from service.uploads import Uploads
from worker.contract import UPLOAD_NAME_PATTERN, InitImage, ModelInfo, SamplerName
from worker.results.uploads import Upload

DATA_URI = re.compile(r"data:image/[a-z0-9.+-]+;base64,", re.IGNORECASE)


async def named_pictures(uploads: Uploads, caller: Caller, body: GenerateRequest) -> Mapping[str, Upload]:
    """By field, the uploads that the request names, and those made of the data URIs that it carries.

    Raises:
        InvalidRequest: no picture, or none of that name.
    """
    named, broken = {}, []
    for field, value in (("init_image", body.init_image), ("mask", body.mask)):
        if value is None:
            continue
        try:
            if re.match(UPLOAD_NAME_PATTERN, value):
                named[field] = await uploads.use(caller, value)
            else:
                named[field] = await uploads.keep(caller, _carried(value))
        except (PictureRefused, UploadUnknown) as error:
            broken.append(FieldProblem(field, str(error), value[:80]))
    if broken:
        raise InvalidRequest(*broken)
    return named


def _carried(value: str) -> bytes:
    head = DATA_URI.match(value)
    try:
        if head is not None:
            return base64.b64decode(value[head.end() :], validate=True)
    except binascii.Error:
        pass
    rule = "need the SHA-256 that POST /uploads answered with, or a data URI: data:image/png;base64,..."
    raise PictureRefused("not_a_picture", rule)


def broken_by_pictures(body: GenerateRequest, model: ModelInfo, named: Mapping[str, Upload]) -> list[FieldProblem]:
    """The rules of the fields that go with an init image."""
    broken = []
    for field, value in (("strength", body.strength), ("mask", body.mask)):
        if value is not None and body.init_image is None:
            broken.append(FieldProblem(field, "needs an init_image", str(value)[:80]))
    if body.paste_back and body.mask is None:
        broken.append(FieldProblem("paste_back", "needs a mask", body.paste_back))
    for field, value in (("init_image", body.init_image), ("mask", body.mask)):
        if value is None and model.needs_mask:
            broken.append(FieldProblem(field, f"{model.name} inpaints: it needs an init_image and a mask"))
    width, height = body.width or model.width, body.height or model.height
    for field, upload in named.items():
        if (upload.width, upload.height) != (width, height):
            drawn = f"{width} x {height} pixels, as {model.name} draws"
            broken.append(FieldProblem(field, f"need {drawn}, got {upload.width} x {upload.height}", upload.sha256))
    if body.init_image is not None:
        steps = steps_of(body, model)
        if int(steps * _strength(body)) < 1:
            rule = f"need strength x steps of at least 1, got {steps} x {_strength(body):g}"
            broken.append(FieldProblem("strength", rule, body.strength))
        if body.sampler is SamplerName.PLMS:
            broken.append(FieldProblem("sampler", "plms begins at noise only: take another with an init_image", "plms"))
    return broken


def init_image_of(body: GenerateRequest, named: Mapping[str, Upload]) -> InitImage | None:
    """What the job says of them: names only."""
    if "init_image" not in named:
        return None
    return InitImage(
        picture=named["init_image"].sha256,
        strength=_strength(body),
        mask=named["mask"].sha256 if "mask" in named else None,
        paste_back=bool(body.paste_back),
    )


def _strength(body: GenerateRequest) -> float:
    if body.strength is not None:
        return body.strength
    return DEFAULT_STRENGTH if body.mask is None else 1.0

"""Where to look for what an equal request drew or draws; `worker.contract.drawn` tells how the cache works."""

from collections.abc import Sequence
from dataclasses import dataclass

from worker.contract import SamplingRequest, WorkerStatus
from worker.contract.drawn import Drawing, device_kind, drawn_digest
from worker.contract.keys import drawing_key, drawn_key


@dataclass(frozen=True, slots=True)
class Lookup:
    drawn: str
    """Key of what is kept."""
    drawing: str
    """Key of the job that draws it now."""
    confirmed: bool
    """Whether the version is surely the one that the request means: named, or read from the workers just now."""


def lookup(
    request: SamplingRequest, owner: str | None, live: Sequence[WorkerStatus], *, just_read: bool
) -> Lookup | None:
    """None where a fresh draw may have other pixels: a worker is not exact, or two of them compute in other ways."""
    drawings = [drawing for worker in live for drawing in _drawings(request, worker)]
    if not drawings or any(drawing is None or drawing != drawings[0] for drawing in drawings):
        return None
    assert drawings[0] is not None
    digest = drawn_digest(request, drawings[0])
    # A job whose version is open may yet begin on a newer one: only those that leave it open too may follow it.
    named = request.version is not None
    following = drawing_key(owner or "", f"{digest}{'-named' if named else ''}")
    return Lookup(drawn_key(owner or "", digest), following, confirmed=named or just_read)


def _drawings(request: SamplingRequest, worker: WorkerStatus) -> list[Drawing | None]:
    """How a worker would draw it: nothing if it can't, None where its images are not exact or it does not know yet."""
    model = next((model for model in worker.models if model.name == request.model), None)
    if model is None:
        return []
    wanted = request.version or model.version
    version = next((info for info in model.versions if info.version == wanted), None)
    if version is None:
        return []
    if not model.exact or model.dtype is None:
        return [None]
    return [
        Drawing(
            version=version.version,
            weights_sha256=version.weights_sha256,
            device=device_kind(worker.device),
            arithmetic=worker.arithmetic,
            dtype=model.dtype,
            form=model.form,
        )
    ]

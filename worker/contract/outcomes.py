"""What becomes of a job: its progress, its images, or why there are none."""

from typing import Self

from pydantic import Field, ValidationError

from worker.contract.message import Message


class ProgressSnapshot(Message):
    """How far a running job is; kept under `progress_key` with an expiry, and published on `events_channel`."""

    step: int
    """Steps that the job's slowest image has behind it."""
    steps: int
    model: str
    version: str
    weights_sha256: str


class Preview(Message):
    """What an image is going to be, as one of its steps predicts it."""

    index: int
    step: int
    """Steps behind the image then."""
    webp: str
    """A small WebP, lossy if it gains by that, in base64."""


class PreviewSnapshot(Message):
    """The newest preview of each image of a job that is watched; kept under `preview_key` for a moment."""

    previews: list[Preview]


class ImageRecord(Message):
    """One finished image."""

    index: int
    seed: int
    sha256: str
    """Of the raw uint8 pixels, [H, W, C] in C order: the same whatever the file format."""
    width: int
    height: int
    size_bytes: int
    flagged: bool | None = None
    """Whether the safety checker objected to it, and it is black for that; None: it was not asked."""
    file: str | None = None
    """Name of its kept file; None in outcomes that were written before files had names: those are gone."""
    frames_file: str | None = None
    """Name of the kept file of its frames, an animated WebP; None where the request asked for none."""

    @property
    def files(self) -> list[str]:
        """Names of all that is kept of it."""
        return [name for name in (self.file, self.frames_file) if name is not None]


class JobOutcome(Message):
    """What a succeeded job returns, kept as its RQ result. JSON only, no pixels."""

    model: str
    version: str
    weights_sha256: str
    dtype: str | None = None
    """Number format that the network computed in; None in outcomes that were written before it was recorded."""
    exact: bool | None = None
    """Whether the same request gives the same pixels in every batch; None as above."""
    images: list[ImageRecord]
    media_type: str
    receipt: str | None = None
    """See `worker.contract.receipts`, in its canonical form; None in outcomes of releases that wrote none."""
    warnings: list[str] = Field(default_factory=list)
    """What was done otherwise than asked, for example a prompt that was cut."""


class JobError(Message):
    """Why a job failed, kept as the exception text of its RQ result."""

    code: str
    """Short and machine-readable: `model_unavailable`, `out_of_memory`, `not_finite`, `bad_job`, `timeout`, ..."""
    detail: str

    @classmethod
    def from_exc_string(cls, exc_string: str | None) -> Self:
        """Read a failure back. A text that no worker of ours wrote (RQ's own reaper) becomes code `worker_lost`."""
        try:
            return cls.model_validate_json(exc_string or "")
        except ValidationError:
            last_line = (exc_string or "").strip().rsplit("\n", 1)[-1]
            return cls(code="worker_lost", detail=last_line or "the worker that ran this job is gone")

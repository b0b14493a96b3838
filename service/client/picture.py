"""One finished image in the hands of a client."""

from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from service.schemas import Image, Job
from worker.contract import ImageFormat

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True, slots=True)
class Picture:
    """An image as the gateway sent it.

    Attributes:
        sha256: of the raw 8-bit pixels, row by row: the same whatever the file format.
        data: the file's bytes, in `format`.
    """

    job_id: str
    model: str
    index: int
    seed: int
    sha256: str
    width: int
    height: int
    format: ImageFormat
    data: bytes = field(repr=False)

    @classmethod
    def of(cls, job: Job, image: Image, data: bytes) -> "Picture":
        return cls(
            job_id=job.id,
            model=job.model,
            index=image.index,
            seed=image.seed,
            sha256=image.sha256,
            width=image.width,
            height=image.height,
            format=job.format,
            data=data,
        )

    @property
    def image(self) -> "PIL.Image.Image":
        """Decoded; needs Pillow."""
        import PIL.Image

        image = PIL.Image.open(BytesIO(self.data))
        image.load()
        return image

    @property
    def file_name(self) -> str:
        """Differs between models, seeds and jobs."""
        return f"{self.model}-seed{self.seed}-{self.job_id[:8]}.{self.format.value}"

    def save(self, directory: str | Path = ".") -> Path:
        """Write the file as it came, under `file_name`; returns its path."""
        path = Path(directory) / self.file_name
        path.write_bytes(self.data)
        return path

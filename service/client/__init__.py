"""The Python client of a gateway, for threads and for asyncio. It needs httpx and pydantic; a decoded image, Pillow.

    with Client("http://127.0.0.1:8000") as client:
        for picture in client.generate(steps=50, batch=4, seed=7, class_label="3"):
            picture.save("pictures")        # the file; picture.data are its bytes, picture.image is a PIL image

`submit`, `watch`, `wait`, `pictures` and `cancel` are the parts of it; `AsyncClient` has the same ones to be awaited.
"""

from service.client.async_client import AsyncClient
from service.client.errors import JobCanceled, JobFailed, ProblemError, ReverieError, Unreachable, WaitTimeout
from service.client.event_feed import JobEvent, PreviewPicture
from service.client.picture import Picture
from service.client.retries import Retries
from service.client.sync_client import Client
from service.schemas import Job

__all__ = [
    "AsyncClient",
    "Client",
    "Job",
    "JobCanceled",
    "JobEvent",
    "JobFailed",
    "Picture",
    "PreviewPicture",
    "ProblemError",
    "Retries",
    "ReverieError",
    "Unreachable",
    "WaitTimeout",
]

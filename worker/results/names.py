"""The names of kept files. Everything that names one takes it from here."""

import re
from uuid import uuid4

OURS = re.compile(r"jobs/[\w-]{1,255}/[0-9a-f]{32}/[\w.-]{1,64}|uploads/[0-9a-f]{64}/[0-9a-f]{32}\.\w{1,8}")
"""Every name made here. What is called otherwise in the same place is somebody else's."""


def job_folder(job_id: str, execution_id: str) -> str:
    """Where one execution of a job writes."""
    return f"jobs/{job_id}/{execution_id}"


def image_file(folder: str, index: int, extension: str) -> str:
    return f"{folder}/{index}.{extension}"


def frames_file(folder: str, index: int) -> str:
    """Of an image on its way."""
    return f"{folder}/{index}-frames.webp"


def upload_file(sha256: str, extension: str) -> str:
    """A new name for each time that the same picture is uploaded: an earlier file of it may be on its way out."""
    return f"uploads/{sha256}/{uuid4().hex}.{extension}"


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]

"""The names of kept files. Everything that names one takes it from here."""

from uuid import uuid4


def job_folder(job_id: str, execution_id: str) -> str:
    """Where one execution of a job writes."""
    return f"jobs/{job_id}/{execution_id}"


def image_file(folder: str, index: int, extension: str) -> str:
    return f"{folder}/{index}.{extension}"


def upload_file(sha256: str, extension: str) -> str:
    """A new name for each time that the same picture is uploaded: an earlier file of it may be on its way out."""
    return f"uploads/{sha256}/{uuid4().hex}.{extension}"


def folder_of(name: str) -> str:
    return name.rpartition("/")[0]

"""A folder or an S3 bucket as a store of objects, through obstore; and what its errors mean."""

import mimetypes
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, TypedDict

from obstore.exceptions import BaseError
from obstore.store import LocalStore, S3Store

from worker.results.files import ResultsAway

if TYPE_CHECKING:
    from obstore import Attributes

ObjectStore = LocalStore | S3Store

REQUEST_S = 10.0
"""Longest that one request to S3 may take, connecting included."""
CONNECT_S = 3.0
RETRIES = 2


def open_store(address: str) -> ObjectStore:
    """The store at `file:///…` or `s3://…`. Raises ResultsAway."""
    with errors_of_the_place():
        if address.startswith("file://"):
            # Each job has a folder of its own; empty ones go with their last file.
            return LocalStore.from_url(address, mkdir=True, automatic_cleanup=True)
        return S3Store.from_url(
            address,
            client_options={
                "timeout": timedelta(seconds=REQUEST_S),
                "connect_timeout": timedelta(seconds=CONNECT_S),
                # An endpoint with http:// is one that the operator chose.
                "allow_http": True,
            },
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=REQUEST_S)},
        )


class PutOptions(TypedDict):
    attributes: "Attributes | None"
    use_multipart: bool


def put_options(store: ObjectStore, name: str) -> PutOptions:
    """How a file is written: with the Content-Type of a presigned URL, which a folder does not keep; and in one
    request, as what is left of several by a process that was killed is found by no listing."""
    media_type = mimetypes.guess_type(name)[0] if isinstance(store, S3Store) else None
    return {"attributes": {"Content-Type": media_type} if media_type else None, "use_multipart": False}


@contextmanager
def errors_of_the_place() -> Iterator[None]:
    """Any error that is not a missing object becomes ResultsAway: full, away, too slow, or not ours to write."""
    try:
        yield
    except FileNotFoundError:
        raise
    except (BaseError, OSError) as error:
        # The first line; what follows is a dump of Rust's structures.
        raise ResultsAway(f"the place for files fails: {str(error).splitlines()[0][:300]}") from error

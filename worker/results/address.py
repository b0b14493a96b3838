"""REVERIE_RESULTS: where files are kept, as an address."""

import re
from typing import Annotated

from pydantic import AfterValidator, Field

IN_REDIS = "redis://"


def _place(address: str) -> str:
    if address == IN_REDIS or re.match(r"file:///[^?#]+$|s3://[^/?#@]+(/[^?#]*)?$", address):
        return address
    raise ValueError("need redis:// (the queue's own), file:///folder or s3://bucket/prefix")


ResultsAddress = Annotated[
    str,
    AfterValidator(_place),
    Field(
        description="where images and uploads are kept: redis:// (the queue's own), file:///folder, s3://bucket/prefix"
    ),
]
"""The credentials and the endpoint of S3 come from AWS_ variables, as every tool for S3 reads them."""

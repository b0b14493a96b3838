"""Fetches the pictures that a job names."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from worker.contract import SamplingRequest
from worker.results.uploads import Uploads


def read_pictures(uploads: Uploads, request: SamplingRequest) -> Mapping[str, "NDArray[np.uint8]"]:
    """By name: [H, W] or [H, W, C] with C = 3 or 4.

    Raises:
        UploadGone: one of them has expired.
        redis.exceptions.RedisError, ResultsAway: no answer.
    """
    if request.init is None:
        return {}
    names = {request.init.picture, request.init.mask} - {None}
    return {name: np.asarray(uploads.read(name)) for name in names if name is not None}

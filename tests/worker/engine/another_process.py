"""Draws requests in a process of its own: `python -m tests.worker.engine.another_process`, JSON in and JSON out.

In: `store`, `max_batch` and `requests`, of each its own fields in `request` and what it goes on from in `state`, packed
as the queue keeps it and in base64, or null. Out: of each the images' SHA-256 and the image-steps that it took.
"""

import base64
import hashlib
import json
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tests.worker.engine.harness import Driver, filled_pool
from worker.contract import SamplingRequest
from worker.engine.messages import EngineRequest
from worker.queue.saved_chains import unpack
from worker.store.model_store import ModelStore


def hashes(images: Iterable[NDArray[np.uint8]]) -> list[str]:
    return [hashlib.sha256(np.ascontiguousarray(image).tobytes()).hexdigest() for image in images]


def main() -> None:
    asked = json.load(sys.stdin)
    pool = filled_pool(ModelStore(Path(asked["store"])))
    answers = []
    for entry in asked["requests"]:
        request = SamplingRequest.model_validate(entry["request"])
        state = None if entry["state"] is None else unpack(base64.b64decode(entry["state"]), request)
        driver = Driver(pool, asked["max_batch"])
        driver.engine.submit(EngineRequest("a", request, state))
        driver.finish()
        answers.append({"hashes": hashes(driver.images("a")), "image_steps": driver.engine.counters().image_steps})
    json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()

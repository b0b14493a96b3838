"""`python -m worker.replay`: draws a receipt's request again, by an engine in this process, with no queue.

Reads the receipt from standard input and writes to standard output that of what was drawn.
"""

import argparse
import logging
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import ValidationError

from worker.contract import ImageFormat, SamplingRequest
from worker.contract.receipts import Computation, Receipt, ReceiptImage, parsed, sampling_request
from worker.outputs.image_files import encode
from worker.outputs.picture_text import PictureText
from worker.outputs.receipt_writer import ReceiptWriter
from worker.results.uploads import picture_sha256

if TYPE_CHECKING:
    from worker.engine.messages import Succeeded
    from worker.models.pool import ModelPool

JOB_ID = "replay"


class ReplayError(Exception):
    """It can't be drawn; the message is one line."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="reverie replay", description=__doc__)
    parser.add_argument("--store", type=Path, help="directory of checkpoints; absent: the bundled models")
    parser.add_argument("--device", help="absent: of the receipt's type")
    parser.add_argument("--dtype", help="absent: the receipt's")
    parser.add_argument("--pictures", type=Path, help="folder of those that the request names, as <hash>.png")
    parser.add_argument("--out", type=Path, help="where the images go; absent: they are not kept")
    options = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(message)s")
    try:
        receipt = Receipt.model_validate(parsed(sys.stdin.buffer.read()), extra="ignore")
        request = _request_of(receipt)
        pool = _pool(options.store, receipt.computation, request, options.device, options.dtype)
        print(_write(_draw(pool, request, _pictures_of(request, options.pictures)), request.format, options.out))
    except (ReplayError, OSError, ValueError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return 1
    return 0


def _request_of(receipt: Receipt) -> SamplingRequest:
    try:
        return sampling_request(receipt.request)
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(map(str, problem["loc"]))
        raise ReplayError(f"its request is none of this release: {place}: {problem['msg']}") from error


def _pool(
    store_path: Path | None, computed: Computation, request: SamplingRequest, device: str | None, dtype: str | None
) -> "ModelPool":
    from worker.store import ModelStore, StoreError, bundled_store_path

    try:
        store = ModelStore(store_path or bundled_store_path())
        store.checkpoint(request.model, request.version)  # before anything slow, torch is: is it there?
    except StoreError as error:
        raise ReplayError(str(error)) from error
    from worker.alone import own_pool

    return own_pool(store, device or computed.device, dtype or computed.dtype, computed.form)


def _pictures_of(request: SamplingRequest, folder: Path | None) -> Mapping[str, "NDArray[np.uint8]"]:
    """Those that the request names, by name: each is what its name says, or it can't be drawn."""
    if request.init is None:
        return {}
    pictures = {}
    for name in {request.init.picture, request.init.mask} - {None}:
        path = None if folder is None else folder / f"{name}.png"
        if path is None or not path.is_file():
            raise ReplayError(f"the picture {name} that it begins at is not there")
        with Image.open(path, formats=["PNG"]) as picture:
            if picture_sha256(picture) != name:
                raise ReplayError(f"{path} is another picture than its name says")
            pictures[str(name)] = np.asarray(picture)
    return pictures


def _draw(pool: "ModelPool", request: SamplingRequest, pictures: Mapping[str, "NDArray[np.uint8]"]) -> "Succeeded":
    from worker.alone import NotDrawn, draw_alone
    from worker.engine.messages import EngineRequest

    try:
        (drawn,) = draw_alone(pool, [EngineRequest(JOB_ID, request, pictures=pictures)])
    except NotDrawn as error:
        raise ReplayError(str(error)) from error
    return drawn


def _write(drawn: "Succeeded", image_format: ImageFormat, out: Path | None) -> str:
    """Keep the images, if asked to; returns their receipt."""
    writer, provenance = ReceiptWriter(), drawn.provenance
    assert provenance is not None  # of the engine's own
    images: list[ReceiptImage] = []

    def describe(sha256: str, width: int, height: int) -> PictureText:
        index = len(images)
        seed = provenance.request.seed + index
        images.append(ReceiptImage(index=index, seed=seed, sha256=sha256, width=width, height=height))
        return writer.of_picture(provenance, images[-1])

    for pixels in drawn.images:
        encoded = encode(pixels, image_format, describe)
        if out is not None:
            out.mkdir(parents=True, exist_ok=True)
            name = f"{drawn.model}-seed{images[-1].seed}-{JOB_ID}.{image_format.extension}"
            (out / name).write_bytes(encoded.data)
    return writer.of_job(provenance, images)


if __name__ == "__main__":
    sys.exit(main())

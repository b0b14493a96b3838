"""Sets a request where an earlier engine left it."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from worker.diffusion.pixels import to_pixels
from worker.engine.messages import SavedChain, SavedImage
from worker.engine.readback import Upload
from worker.engine.request_state import RequestState
from worker.engine.runner import run_step
from worker.engine.save_point import SavePoint
from worker.engine.trajectory import Trajectory
from worker.models.loaded_model import LoadedModel
from worker.networks.device import end_if_lost
from worker.networks.memory_errors import out_of_memory

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Resumed:
    """What became of a saved state.

    Attributes:
        entering: by image, the states of rows that are still to enter their leg or to compute deep features again: a
            network may have to run for that.
        steps: of all images, behind them.
    """

    entering: Mapping[int, SavedImage]
    steps: int


def resume(state: RequestState, upload: Upload, drop_spares: Callable[[], bool]) -> Resumed | None:
    """Let a request go on where an earlier engine left it, if that is the same request on the same weights.

    A state that can't be used is ignored, or it would end every engine that takes the job over.

    Args:
        state: with fresh rows.
        drop_spares: frees memory that nobody needs; False when there is none.
    """
    chain, rows, model = state.resume, state.rows, state.model
    state.resume = None  # its memory is not needed any more
    if chain is None:
        return None
    if (reason := misfit(chain, rows, model)) is not None:
        log.warning("job %s begins anew, its saved state can't be used: %s", state.job_id, reason)
        return None
    entering = {row.index: image for row, image in zip(rows, chain.images, strict=True) if _runs_network(row, image)}
    now = [(row, image) for row, image in zip(rows, chain.images, strict=True) if row.index not in entering]
    try:
        for row, image in now:
            _resume_row_with_room(row, image, upload, drop_spares)
    except Exception as error:
        end_if_lost(model.device, error)
        reason = f"{type(error).__name__}: {error}"
        log.warning("job %s begins anew, its saved state can't be used: %s", state.job_id, reason)
        state.make_rows()
        return None
    for row, image in zip(rows, chain.images, strict=True):
        if state.moments:
            state.frames[row.index].update(image.frames)
    for row, image in now:
        if row.finished and image.x_t is not None and model.codec.in_step:
            state.images[row.index] = to_pixels(model.codec.decode(torch.tensor(image.x_t)[None]))[0].numpy()
    plans = state.admission.plans
    steps = sum(image.step + sum(map(len, plans[: image.leg])) for image in chain.images)
    log.info("job %s goes on, %d of its %d steps are behind it", state.job_id, steps, len(rows) * state.steps)
    return Resumed(entering, steps)


def _runs_network(row: Trajectory, image: SavedImage) -> bool:
    """Whether the row can't go on from there at once."""
    return image.entry is not None or row.legs[image.leg].plan.features[image.step] > 0


def _resume_row_with_room(row: Trajectory, image: SavedImage, upload: Upload, drop_spares: Callable[[], bool]) -> None:
    try:
        resume_row(row, image, upload)
    except Exception as error:
        if not (out_of_memory(error) and drop_spares()):
            raise
        resume_row(row, image, upload)


def misfit(chain: SavedChain, rows: Sequence[Trajectory], model: LoadedModel) -> str | None:
    """Why these rows can't go on from that state; None when they can."""
    if (chain.model, chain.version, chain.weights_sha256) != (model.name, model.version, model.weights_sha256):
        return f"it is of {chain.model}/{chain.version}, the request runs on {model.name}/{model.version}"
    if chain.dtype != model.execution.dtype:
        return f"it was computed in {chain.dtype}, the request runs in {model.execution.dtype}"
    if len(chain.images) != len(rows):
        return f"it has {len(chain.images)} images, the request {len(rows)}"
    for row, image in zip(rows, chain.images, strict=True):
        if (reason := _image_misfit(image, row)) is not None:
            return f"image {row.index} {reason}"
    all_finished = all(_is_finished(image, row) for row, image in zip(rows, chain.images, strict=True))
    return "nothing is left to do in it" if all_finished and model.codec.in_step else None


def _image_misfit(image: SavedImage, row: Trajectory) -> str | None:
    if not 0 <= image.leg < len(row.legs):
        return f"is in leg {image.leg} of {len(row.legs)}"
    leg = row.legs[image.leg]
    steps = len(leg.plan)
    if not 0 <= image.step <= steps:
        return f"is at step {image.step} of {steps}"
    entered = row.legs[image.leg - 1].shape if image.leg else leg.shape
    states = [image.x_t, image.x_0_previous, image.full_x_t, *image.earlier_outputs]
    for x, shape in (*((x, leg.shape) for x in states), (image.entry, entered)):
        if x is not None and (x.shape != shape or x.dtype != np.float32):
            return f"is {x.dtype} {list(x.shape)}, the model draws float32 {list(shape)}"
    if any(pixels.ndim != 3 or pixels.dtype != np.uint8 for pixels in image.frames.values()):
        return "has a frame that is no picture"
    if (image.leg > 0) != (image.entry is not None):
        return f"is in leg {image.leg} and what it was entered with is {'missing' if image.leg else 'there'}"
    if image.step > 0 and image.x_t is None:
        return f"is at step {image.step} and its state is missing"
    if image.step == 0 and image.leg == 0 and image.x_t is not None:
        return "is at step 0 and its state is there"
    if 0 < image.step < steps:
        lacks_x_0 = image.x_0_previous is None and leg.plan.reads_history(image.step)
        if lacks_x_0 or len(image.earlier_outputs) != leg.plan.earlier_outputs[image.step]:
            return f"lacks the history that step {image.step} reads"
        if not leg.plan.is_full(image.step):
            return f"is at step {image.step}, whose deep features nothing makes again"
        if leg.plan.features[image.step] and leg.plan.last_full(image.step) > 0 and image.full_x_t is None:
            return f"lacks the last full step's state, whose deep features step {image.step} is read beside"
    return None


def _is_finished(image: SavedImage, row: Trajectory) -> bool:
    return image.leg == len(row.legs) - 1 and image.step == len(row.legs[-1].plan)


@torch.inference_mode()
def resume_row(row: Trajectory, image: SavedImage, upload: Upload) -> None:
    """Put a fresh row where its saved state says, which fits it. Enters a later leg as the first time.

    Whatever `upload` and the leg's entry raise is raised here; the row is as it was then.
    """

    def on_device(x: NDArray[np.float32] | None) -> Tensor | None:
        return None if x is None else upload(x, row.model.device)

    earlier_outputs = tuple(upload(x, row.model.device) for x in image.earlier_outputs)
    x_t, x_0_previous, entry = (on_device(x) for x in (image.x_t, image.x_0_previous, image.entry))
    if entry is not None:
        row.enter_leg(image.leg, entry)
    if image.step > 0:
        full_x_t = on_device(image.full_x_t)
        features = _features_again(row, image.step, full_x_t)
        row.take_up(SavePoint(image.step, x_t, x_0_previous, earlier_outputs, full_x_t), features)


def _features_again(row: Trajectory, step: int, full_x_t: Tensor | None) -> tuple[Tensor, ...]:
    """The deep features that a fresh row must have at hand at a full step: those of the full step before.

    Args:
        full_x_t: that step's x_t; None for the first one, whose x_t is where the row begins.
    """
    if not row.plan.features[step]:
        return ()
    row.step, begins_at = row.plan.last_full(step), row.x_t
    if full_x_t is not None:
        row.x_t = full_x_t
    features = run_step([row], row.network_rows * row.leg.area).features[0]
    row.step, row.x_t = 0, begins_at
    return (features,)

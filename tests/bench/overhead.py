"""Part overhead: the engine's time outside of the U-Net, as a share of a step."""

import dataclasses
import time
from dataclasses import dataclass, field

import torch
from torch import Tensor

from tests.bench.figures import Bar, Figure
from tests.bench.own_loop import draw_all, filled_pool, request_for
from tests.bench.session import Session
from worker.contract import SamplerName
from worker.engine.engine import Engine
from worker.models.loaded_model import LoadedModel
from worker.networks.denoiser import Denoiser
from worker.networks.network_input import NetworkInput
from worker.store.model_store import Checkpoint

PART = "overhead"
BATCH = 16


@dataclass
class TimedDenoiser:
    """A U-Net that keeps how long each of its calls took, the device's work included."""

    inner: Denoiser
    device: torch.device
    calls_s: list[float] = field(default_factory=list)

    def __call__(self, inputs: NetworkInput) -> Tensor:
        self._wait()
        began = time.perf_counter()
        output = self.inner(inputs)
        self._wait()
        self.calls_s.append(time.perf_counter() - began)
        return output

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def run(session: Session) -> list[Figure]:
    model, steps = session.large_model, 20 if session.quick or session.on_gpu else 12
    timed: list[TimedDenoiser] = []
    load = session.loader(BATCH)

    def load_timed(checkpoint: Checkpoint) -> LoadedModel:
        loaded = load(checkpoint)
        timed.append(TimedDenoiser(loaded.denoise, session.device))
        return dataclasses.replace(loaded, denoise=timed[-1])

    pool = filled_pool(session.store(model), load_timed, model, load.networks)
    (denoiser,) = timed
    figures = []
    for sampler, bar in ((SamplerName.DDIM, Bar("<=", 0.03)), (SamplerName.DDPM, None)):
        # Sixteen requests, so that the queue, the progress and the ends are as many as they can be.
        requests = [request_for(model, steps, 1, 1000 * number, sampler) for number in range(BATCH)]
        draw_all(Engine(pool, BATCH), [request_for(model, 1, BATCH, sampler=sampler)])
        denoiser.calls_s.clear()
        walls_s: list[float] = []
        draw_all(Engine(pool, BATCH), requests, walls_s.append)
        outside_s = [wall - inside for wall, inside in zip(walls_s, denoiser.calls_s, strict=True)]
        shares = [outside / wall for outside, wall in zip(outside_s, walls_s, strict=True)]
        what = f"batch {BATCH}, {sampler.value}"
        figures.append(Figure(PART, f"a step, {what}", "ms", [wall * 1e3 for wall in walls_s]))
        figures.append(Figure(PART, f"outside of the U-Net, {what}", "ms", [outside * 1e3 for outside in outside_s]))
        note = "with the update rule's and the noise's kernels"
        figures.append(Figure(PART, f"share outside of the U-Net, {what}", "of 1", shares, bar, note))
    return figures

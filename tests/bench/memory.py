"""Part memory: the worker's peak, beside that of a process with diffusers' pipeline and the same batch."""

import sys

import torch

from tests.bench.clients import replay, to_peer, to_reverie
from tests.bench.figures import Figure
from tests.bench.own_loop import image_steps_per_s
from tests.bench.peers.forms import PipelineForm
from tests.bench.processes import free_port, memory_mib, reverie, serving, worker_pid
from tests.bench.session import Session
from tests.bench.trace import TimedRequest

PART = "memory"
STEPS = 3


def run(session: Session) -> list[Figure]:
    model, batch = session.large_model, session.max_batch
    own, peer = peaks_mib(session, model, batch, batch)
    figures = [
        Figure(PART, f"worker, peak, batch {batch}", "MiB", [own]),
        Figure(PART, f"FastAPI + DDIMPipeline, peak, batch {batch}", "MiB", [peer]),
    ]
    if session.on_gpu:
        pool = session.pool(model)
        torch.cuda.reset_peak_memory_stats(session.device)
        image_steps_per_s(pool, model, batch, STEPS)
        peak = torch.cuda.max_memory_allocated(session.device) / 2**20
        figures.append(Figure(PART, f"engine, peak on the GPU, batch {batch}", "MiB", [peak]))
    return figures


def peaks_mib(
    session: Session, model: str, images: int, max_batch: int, *, by_prompt: bool = False
) -> tuple[float, float]:
    """Of the worker, and of a server around the pipeline, after one request for so many images."""
    trace = [TimedRequest(0.0, STEPS, images, seed=0)]
    with reverie(session.store(model).root, session.folder, max_batch, str(session.device)) as server:
        replay(server.url, trace, to_reverie(model, by_prompt=by_prompt))
        own = memory_mib(worker_pid(server))
    port = free_port()
    form = PipelineForm(session.dtype_name, channels_last=True)
    arguments = [str(session.checkpoint(model).path), str(port), str(session.device), *form.arguments()]
    command = [sys.executable, "-m", "tests.bench.peers.locked_pipeline", *arguments]
    with serving(command, port, "/health", session.folder / "memory-peer.log") as server:
        replay(server.url, trace, to_peer)
        return own, memory_mib(server.process.pid)

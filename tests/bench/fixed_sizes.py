"""What it costs on a GPU that batches have a few sizes, and what CUDA graphs of those sizes give back."""

from tests.bench.engine_plan import GPU_STEPS
from tests.bench.figures import Figure
from tests.bench.own_loop import filled_pool, image_steps_per_s, loader
from tests.bench.samples import Measure, alternate, ratios
from tests.bench.session import Session
from worker.models.pool import ModelPool
from worker.networks.padded import BATCH_SIZES, PadBatch

PART = "engine"
ROWS = (1, 3, 16, 24, 33, 64)
"""Batches that are a size, that are three quarters of one, and the worst: one row more than half."""
BUDGET_S = 20.0


def run_as(rows: int) -> int:
    """The size that a batch is filled up to."""
    return next(size for size in BATCH_SIZES if size >= rows)


def fixed_sizes(session: Session, model: str) -> list[Figure]:
    """Any size, fixed sizes, and recorded fixed sizes, all three with the same network, round by round."""
    variants = {
        "any": _pool(session, model, PadBatch.OFF, cuda_graphs=False),
        "fixed": _pool(session, model, PadBatch.SIZES, cuda_graphs=False),
        "recorded": _pool(session, model, PadBatch.SIZES, cuda_graphs=True),
    }
    steps = 3 if session.quick else GPU_STEPS
    figures = []
    for rows in ROWS:
        session.say(f"  fixed sizes: {rows} rows, run as {run_as(rows)}")
        measures: dict[str, Measure] = {
            name: lambda pool=pool, rows=rows: image_steps_per_s(pool, model, rows, steps)  # type: ignore[misc]
            for name, pool in variants.items()
        }
        for measure in measures.values():
            measure()  # warms up
        taken = alternate(measures, rounds=2 if session.quick else 5, budget_s=BUDGET_S)
        at = f"{rows} rows run as {run_as(rows)}"
        figures += [
            Figure(PART, f"fixed sizes / any size, {at}", "x", ratios(taken["fixed"], taken["any"])),
            Figure(PART, f"CUDA graphs / kernel by kernel, {at}", "x", ratios(taken["recorded"], taken["fixed"])),
        ]
    return figures


def _pool(session: Session, model: str, pad_batch: PadBatch, *, cuda_graphs: bool) -> ModelPool:
    load = loader(session.device, session.dtype, run_as(max(ROWS)), pad_batch=pad_batch, cuda_graphs=cuda_graphs)
    return filled_pool(session.store(model), load, model)

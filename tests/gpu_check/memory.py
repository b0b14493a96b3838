"""Part memory: what recordings hold, what reloads leave behind, and what a card that is full raises."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from tests.bench import networks
from tests.bench.own_loop import filled_pool, loader
from tests.gpu_check.findings import Finding, figure
from tests.gpu_check.part import Check
from worker.networks.cuda.graph_capture import CudaGraphs, GraphCapture
from worker.networks.memory_errors import out_of_memory
from worker.store.model_store import ModelStore

MIB = 2**20


def recordings(device: torch.device) -> Iterator[Finding]:
    """Of one model, of two, and after five reloads."""
    store = ModelStore(Path(tempfile.mkdtemp()))
    load = loader(device, torch.bfloat16, 16)
    assert load.networks is not None
    networks.publish(store, networks.QUARTER)
    pool = filled_pool(store, load, networks.QUARTER, load.networks)
    after_reloads: list[int] = []
    for seed in range(1, 6):
        networks.publish(store, networks.QUARTER, seed)
        pool.poll()
        pool.load_pending()
        after_reloads.append(load.networks.recording_bytes())
    yield figure("memory", "recordings of one kind, MiB", after_reloads[0] // MIB)
    grown = after_reloads[-1] - after_reloads[0]
    yield Finding("memory", "growth over four more reloads, MiB", "0", str(grown // MIB), grown == 0)
    yield figure("memory", "reserved by torch, MiB", torch.cuda.memory_reserved(device) // MIB)


def broken_recording(device: torch.device) -> Iterator[Finding]:
    """A recording that waits for the device is refused, and the next one works."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    x = torch.ones(8, device=device)
    try:
        GraphCapture(CudaGraphs(stream))(lambda: x * float(x.sum().item()))
        yield Finding("memory", "a recording that waits", "is refused", "was recorded", ok=False)
    except RuntimeError as error:
        yield figure("memory", "a recording that waits", str(error).splitlines()[0])
    torch.cuda.empty_cache()
    doubled = GraphCapture(CudaGraphs(stream))(lambda: x * 2)()
    torch.cuda.synchronize(device)
    yield Finding("memory", "the next recording", "works", str(doubled.sum().item()), doubled.sum().item() == 16)


def full_card(device: torch.device) -> Iterator[Finding]:
    """What the libraries raise when they find no memory: all of it is to be known for that."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    filler = []
    for size in (2**30, 2**25, 2**21):
        try:
            while True:
                filler.append(torch.empty(size, dtype=torch.uint8, device=device))
        except RuntimeError as error:
            yield _known("torch's allocator", error)
    calls: dict[str, Callable[[], object]] = {
        "cuBLAS": lambda: torch.ones(8, 8, device=device).mm(torch.ones(8, 8, device=device)),
        "pinned memory": lambda: torch.empty(2**42, dtype=torch.uint8, pin_memory=True),
        "a recording": lambda: GraphCapture(CudaGraphs(stream))(lambda: torch.empty(2**28, device=device)),
    }
    for name, call in calls.items():
        try:
            call()
            yield figure("memory", f"full card, {name}", "found some")
        except RuntimeError as error:
            yield _known(name, error)
    filler.clear()
    torch.cuda.empty_cache()


def _known(what: str, error: RuntimeError) -> Finding:
    found = f"{type(error).__name__}: {str(error).splitlines()[0][:120]}"
    return Finding("memory", f"full card, {what}", "is known for that", found, out_of_memory(error))


CHECKS: list[Check] = [recordings, broken_recording, full_card]

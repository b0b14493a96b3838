"""Finds the fastest form of a network on the CPU in which an image does not depend on its batch."""

import logging
import threading
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from worker.networks.architecture import NetworkSource
from worker.networks.cpu.batch_invariant import make_batch_invariant
from worker.networks.cpu.jit.available import cpu_kernels
from worker.networks.cpu.jit.layers import CompiledConv2d
from worker.networks.cpu.recorded import RecordedDenoiser
from worker.networks.cpu.team import CpuTeam
from worker.networks.cpu.threaded import ALWAYS_NARROW, Split, ThreadedDenoiser, measured_split
from worker.networks.denoiser import Denoiser
from worker.networks.device import cpu_computes_bfloat16
from worker.networks.exactness import OneByOne, agree, is_batch_invariant
from worker.networks.form import Form, PreparedNetwork

if TYPE_CHECKING:
    from worker.networks.cpu.jit.kernels import CpuKernels

log = logging.getLogger(__name__)

CPU = torch.device("cpu")
WORTH_CHANNELS = 64
"""Of a network's widest convolution: with fewer there is nothing to gain by compiling kernels."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """What the probe found for one kind of network."""

    form: Form
    split: Split


_choices: dict[str, _Choice] = {}  # by kind, so that a reload is not probed again


def prepare_on_cpu(source: NetworkSource, threads: int) -> PreparedNetwork:
    """Prepare the network in the fastest form that is exact in batches, or to run row by row if none is.

    Args:
        source: opened again for each form, because preparing one modifies the network.
        threads: number of threads to compute with.
    """
    if source.dtype is torch.bfloat16 and not cpu_computes_bfloat16():
        # torch has other kernels then, many times slower and with forms of their own.
        log.warning("%s: this processor can't compute in bfloat16, float32 would be many times faster", source.where)
        network = source.open()
        team = CpuTeam(threads)

        def one_by_one(inner: Denoiser) -> Denoiser:
            return ThreadedDenoiser(OneByOne(inner), team)

        denoise = one_by_one(source.denoiser(network))
        return PreparedNetwork(network, denoise, source.dtype, Form.ONE_BY_ONE, one_by_one)
    known = _choices.get(source.kind)
    if known is not None:
        network, threaded = _prepare(source, threads, known.form)
        return _finish(source, network, threaded, known)
    for form in (Form.FAST, Form.DIRECT):
        network, threaded = _prepare(source, threads, form)
        if is_batch_invariant(threaded.one_thread, source.inputs, CPU):
            known = _choices[source.kind] = _Choice(form, _split(threaded, source))
            return _finish(source, network, threaded, known)
        log.warning("%s: batches in the %s form are not exact on this processor", source.where, form)
    known = _choices[source.kind] = _Choice(Form.ONE_BY_ONE, ALWAYS_NARROW)
    log.warning("%s: images are run one by one", source.where)
    return _finish(source, network, threaded, known)


def prepare_compiled(source: NetworkSource, threads: int) -> PreparedNetwork | None:
    """Prepare the network with the kernels that are compiled for this processor.

    None where there are none, where the network has no large convolution for them, or where it is not exact in batches.
    """
    kernels = cpu_kernels() if source.dtype is torch.float32 else None
    if kernels is None:
        return None
    network, threaded = _prepare(source, threads, Form.COMPILED, kernels)
    if not any(isinstance(m, CompiledConv2d) and len(m.bias) >= WORTH_CHANNELS for m in network.modules()):
        return None
    try:
        kernels.compiled()
    except (RuntimeError, OSError) as error:
        log.warning("%s: no kernels could be compiled: %s", source.where, error)
        return None
    kind = f"compiled {source.kind}"
    known = _choices.get(kind)
    if known is None:
        if not is_batch_invariant(threaded.one_thread, source.inputs, CPU):
            log.warning("%s: batches in the %s form are not exact on this processor", source.where, Form.COMPILED)
            return None
        played = replace(threaded, inner=RecordedDenoiser(threaded.inner))
        known = _choices[kind] = _Choice(Form.COMPILED, _split(played, source))
    return _finish(source, network, threaded, known)


def compile_ahead(config: Mapping[str, Any]) -> threading.Thread | None:
    """Begin to compile the kernels on a thread, if a network of this config.json may use them.

    That takes seconds, and so does the import of the network's class, which uses one core.
    """
    channels = config.get("block_out_channels")
    if not isinstance(channels, list) or not any(isinstance(c, int) and c >= WORTH_CHANNELS for c in channels):
        return None
    kernels = cpu_kernels()
    if kernels is None:
        return None
    thread = threading.Thread(target=_compile, args=[kernels], name="compile")
    thread.start()
    return thread


def _compile(kernels: "CpuKernels") -> None:
    with suppress(RuntimeError, OSError):  # said when they are needed
        kernels.compiled()


def _prepare(
    source: NetworkSource, threads: int, form: Form, kernels: "CpuKernels | None" = None
) -> tuple[nn.Module, ThreadedDenoiser]:
    team, network = CpuTeam(threads), source.open()
    denoise = source.denoiser(network)
    make_batch_invariant(network, denoise, source.inputs, team, winograd=form is not Form.DIRECT, kernels=kernels)
    return network, ThreadedDenoiser(denoise, team)


def _finish(source: NetworkSource, network: nn.Module, threaded: ThreadedDenoiser, choice: _Choice) -> PreparedNetwork:
    def around(inner: Denoiser) -> Denoiser:
        played = RecordedDenoiser(inner) if choice.form is Form.COMPILED else inner
        denoise = replace(threaded, inner=played, split=choice.split)
        return OneByOne(denoise) if choice.form is Form.ONE_BY_ONE else denoise

    return PreparedNetwork(network, around(threaded.inner), source.dtype, choice.form, around)


def _split(denoise: ThreadedDenoiser, source: NetworkSource) -> Split:
    if denoise.team.size == 1:
        return ALWAYS_NARROW
    if not agree(denoise.one_thread, denoise.wide, source.inputs):
        log.warning("%s: a single image uses one core: split operations are not exact on this processor", source.where)
        return ALWAYS_NARROW
    return measured_split(denoise, source.inputs)

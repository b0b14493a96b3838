"""The fastest form of a U-Net on the CPU in which an image's numbers do not depend on the batch it is in."""

import logging
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import nn

from worker.networks.architecture import NetworkSource
from worker.networks.cpu.batch_invariant import make_batch_invariant
from worker.networks.cpu.team import CpuTeam
from worker.networks.cpu.threaded import ALWAYS_NARROW, Split, ThreadedDenoiser, measured_split
from worker.networks.denoiser import Denoiser
from worker.networks.exactness import OneByOne, agree, is_batch_invariant
from worker.networks.network_input import InputSpec

log = logging.getLogger(__name__)

CPU = torch.device("cpu")


class Form(Enum):
    """What is put in the place of diffusers' blocks."""

    FASTEST = "fastest"
    """Winograd's convolutions where they pay."""
    DIRECT = "direct"
    """Plain convolutions."""


@dataclass(frozen=True, slots=True)
class _Choice:
    """What probing found for one kind of network.

    Attributes:
        form: None: no form was exact.
    """

    form: Form | None
    split: Split


_choices: dict[str, _Choice] = {}  # a reload of the same network on the same threads need not be probed again


def prepare_on_cpu(source: NetworkSource, threads: int) -> tuple[nn.Module, Denoiser]:
    """The network in the fastest form whose rows do not depend on the batch they are in, else one run row by row.

    Args:
        source: opened once for each form that is tried; a form takes the network apart.
        threads: to share the work among.
    """
    spec, dtype, kind, where = source.inputs, source.dtype, source.kind, source.where

    def prepare(form: Form) -> tuple[nn.Module, ThreadedDenoiser]:
        team, network = CpuTeam(threads), source.open()
        denoise = source.denoiser(network)
        make_batch_invariant(network, denoise, spec, team, winograd=form is Form.FASTEST)
        return network, ThreadedDenoiser(denoise, team)

    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        # torch has other kernels then, many times slower and with forms of their own.
        log.warning("%s: bfloat16 is emulated on this processor, float32 would be faster", where)
        network = source.open()
        return network, ThreadedDenoiser(OneByOne(source.denoiser(network)), CpuTeam(threads))
    choice = _choices.get(kind)
    if choice is not None:
        network, denoise = prepare(choice.form or Form.DIRECT)
        denoise = replace(denoise, split=choice.split)
        return network, denoise if choice.form else OneByOne(denoise)
    for form in Form:
        network, denoise = prepare(form)
        if is_batch_invariant(denoise.one_thread, spec, CPU):
            split = _split(denoise, spec, where)
            _choices[kind] = _Choice(form, split)
            return network, replace(denoise, split=split)
        log.warning("%s: batches in the %s form are not exact on this processor", where, form.value)
    _choices[kind] = _Choice(None, ALWAYS_NARROW)
    log.warning("%s: images are run one by one", where)
    return network, OneByOne(denoise)


def _split(denoise: ThreadedDenoiser, spec: InputSpec, where: str) -> Split:
    if denoise.team.size == 1:
        return ALWAYS_NARROW
    if not agree(denoise.one_thread, denoise.wide, spec):
        log.warning("%s: a single image uses one core: split operations are not exact on this processor", where)
        return ALWAYS_NARROW
    return measured_split(denoise, spec)

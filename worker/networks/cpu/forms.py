"""The fastest form of a U-Net on the CPU in which an image's numbers do not depend on the batch it is in."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import nn

from worker.networks.cpu.batch_invariant import make_batch_invariant
from worker.networks.cpu.team import CpuTeam
from worker.networks.cpu.threaded import ALWAYS_NARROW, Split, ThreadedDenoiser, measured_split
from worker.networks.denoiser import Denoiser
from worker.networks.exactness import OneByOne, agree, is_batch_invariant
from worker.networks.unet2d import UNetDenoiser

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


def prepare_on_cpu(
    open_unet: Callable[[], nn.Module],
    kind: str,
    shape: tuple[int, int, int],
    num_classes: int,
    dtype: torch.dtype,
    threads: int,
    where: str,
) -> tuple[nn.Module, Denoiser]:
    """The U-Net in the fastest form whose rows do not depend on the batch they are in, else one asked row by row.

    Args:
        open_unet: a new one with the checkpoint's weights in each call; a form takes them apart.
        kind: the same for networks that differ in their weights only.
        threads: to share the work among.
        where: which checkpoint, for the log.
    """

    def prepare(form: Form) -> tuple[nn.Module, ThreadedDenoiser]:
        team = CpuTeam(threads)
        unet = make_batch_invariant(open_unet(), shape, num_classes, team, winograd=form is Form.FASTEST)
        return unet, ThreadedDenoiser(UNetDenoiser(unet, dtype), team)

    if dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        # torch has other kernels then, many times slower and with forms of their own.
        log.warning("%s: bfloat16 is emulated on this processor, float32 would be faster", where)
        unet = open_unet()
        return unet, ThreadedDenoiser(OneByOne(UNetDenoiser(unet, dtype)), CpuTeam(threads))
    choice = _choices.get(kind)
    if choice is not None:
        unet, denoise = prepare(choice.form or Form.DIRECT)
        denoise = replace(denoise, split=choice.split)
        return unet, denoise if choice.form else OneByOne(denoise)
    for form in Form:
        unet, denoise = prepare(form)
        if is_batch_invariant(denoise.one_thread, shape, num_classes, CPU):
            split = _split(denoise, shape, num_classes, where)
            _choices[kind] = _Choice(form, split)
            return unet, replace(denoise, split=split)
        log.warning("%s: batches in the %s form are not exact on this processor", where, form.value)
    _choices[kind] = _Choice(None, ALWAYS_NARROW)
    log.warning("%s: images are run one by one", where)
    return unet, OneByOne(denoise)


def _split(denoise: ThreadedDenoiser, shape: tuple[int, int, int], num_classes: int, where: str) -> Split:
    if denoise.team.size == 1:
        return ALWAYS_NARROW
    if not agree(denoise.one_thread, denoise.wide, shape, num_classes):
        log.warning("%s: a single image uses one core: split operations are not exact on this processor", where)
        return ALWAYS_NARROW
    return measured_split(denoise, shape, num_classes)

"""What a GPU's networks are made of, on the CPU: the same parameters and the same function."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from tests.worker.networks.prepared import tiny_inputs
from tests.worker.tiny_models import tiny_unet
from worker.networks.cuda.forms import SCALES, FixedRowsLinear, prepare_on_cuda
from worker.networks.unet2d import UNet2DDenoiser


def inputs(rows: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(rows)
    x = torch.randn(rows, 1, 8, 8, generator=generator).contiguous(memory_format=torch.channels_last)
    return {"sample": x, "timestep": torch.arange(rows) * 100.0, "class_labels": torch.arange(rows) % 5}


def divisions(unet: nn.Module) -> int:
    with profile(activities=[ProfilerActivity.CPU]) as profiled:
        unet(**inputs(8))
    return sum(event.count for event in profiled.key_averages() if event.key == "aten::div")


@torch.inference_mode()
def test_no_block_divides_by_one_and_the_bits_are_the_same() -> None:
    prepared = prepare_on_cuda(tiny_unet().eval(), max_rows=8)
    plain = prepare_on_cuda(tiny_unet().eval(), max_rows=8)
    for block in plain.modules():
        for scale in SCALES:
            if hasattr(block, scale):
                setattr(block, scale, 1.0)
    assert torch.equal(prepared(**inputs(8)).sample, plain(**inputs(8)).sample)
    assert divisions(prepared) < divisions(plain) - 8


@torch.inference_mode()
def test_weights_of_a_plain_network_go_into_a_prepared_one() -> None:
    prepared = prepare_on_cuda(tiny_unet(1).eval(), max_rows=4)
    prepared.load_state_dict(tiny_unet(2).state_dict())
    fresh = prepare_on_cuda(tiny_unet(2).eval(), max_rows=4)
    assert torch.equal(prepared(**inputs(4)).sample, fresh(**inputs(4)).sample)


@torch.inference_mode()
def test_a_product_has_as_many_rows_in_every_batch() -> None:
    linear = nn.Linear(40, 24)
    fixed = FixedRowsLinear(linear, rows=16)
    x = torch.randn(16, 40, generator=torch.Generator().manual_seed(0))
    full = fixed(x)
    assert torch.equal(full, linear(x))
    for rows in (1, 2, 3, 8, 15):
        assert torch.equal(fixed(x[:rows]), full[:rows])
        assert torch.equal(fixed(x[-rows:])[-1], fixed(x[[-1]])[0])


@torch.inference_mode()
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_every_convolution_reads_and_writes_the_chosen_memory_format(memory_format: torch.memory_format) -> None:
    unet = prepare_on_cuda(tiny_unet().eval(), 4, memory_format)
    in_other_formats: list[str] = []

    def look(name: str, conv: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = (inputs[0], output, *conv.parameters())
        if not all(x.dim() != 4 or x.is_contiguous(memory_format=memory_format) for x in tensors):
            in_other_formats.append(name)

    for name, module in unet.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda *seen, name=name: look(name, *seen))
    UNet2DDenoiser(unet, torch.float32, memory_format)(tiny_inputs(4))
    assert in_other_formats == []

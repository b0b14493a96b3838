"""The end of a step as one kernel: its bits on Triton's interpreter, its instructions for cards that are not here."""

import os
import re
import subprocess
import sys

import pytest
import torch

from worker.diffusion.step_end import StepEnd, Stepped, end_step
from worker.diffusion.update import Clip
from worker.networks.cuda.fused_step import agrees, choose_end_step

NEEDS_TRITON = "Triton comes with torch's builds for CUDA and with the extra `dev`"


@pytest.mark.timeout(900)  # an interpreter, beside whatever else runs
def test_the_kernel_gives_the_bits_of_torchs_operations() -> None:
    pytest.importorskip("triton", reason=NEEDS_TRITON)
    done = subprocess.run(
        [sys.executable, "-m", "tests.worker.networks.interpreted_step"],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]


@pytest.mark.slow
@pytest.mark.parametrize("capability", [75, 80, 90, 120])
def test_no_multiplication_is_fused_with_an_addition_on_any_card(capability: int) -> None:
    """That would round once where the rule rounds twice. Compiled here by the assembler that comes with Triton."""
    triton = pytest.importorskip("triton", reason=NEEDS_TRITON)
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from worker.networks.cuda.step_kernel import finish_step

    floats = ["x_t", "output", "x_0_previous", "coefficients", "guidance_scales", "x_next_out", "x_0_out"]
    floats += ["output_1", "output_2", "output_3", "output_out"]
    signature = {**dict.fromkeys(floats, "*fp32"), "row_numbers": "*i64", "finite": "*u8", "pixels": "*u8"}
    signature |= {"values": "i32", "plane": "i32", "clip_range": "fp32"}
    signature |= dict.fromkeys(["history", "multistep", "clip", "blocks"], "constexpr")
    ordered = {name: signature[name] for name in finish_step.arg_names}
    source = ASTSource(
        finish_step, ordered, constexprs={"history": True, "multistep": True, "clip": True, "blocks": 128}
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"enable_fp_fusion": False})
    operations = set(
        re.findall(r"\b((?:fma|mul|add|sub|div|sqrt|rcp)\.[a-z0-9.]*f(?:32|64)(?:x2)?)\b", compiled.asm["ptx"])
    )
    assert {"mul.rn.f64", "add.rn.f64", "div.rn.f64", "sqrt.rn.f64"} <= operations
    assert [operation for operation in operations if ".rn." not in operation or operation.startswith("fma")] == []


def test_no_step_waits_for_another_variant_of_the_kernel_to_be_compiled() -> None:
    """They are those that are compared at the start: no other shape, and no other place of a step's numbers, is one."""
    pytest.importorskip("triton", reason=NEEDS_TRITON)
    from worker.networks.cuda.step_kernel import finish_step

    general = {p.name for p in finish_step.params if p.do_not_specialize or p.do_not_specialize_on_alignment}
    assert general == {"values", "plane", "coefficients", "row_numbers", "guidance_scales", "finite"}


def test_a_kernel_with_other_bits_is_found_out() -> None:
    def off_by_a_bit(end: StepEnd, clip: Clip) -> Stepped:
        stepped = end_step(end, clip)
        stepped.x_t.view(torch.int32)[0, 0, 0, 0] ^= 1
        return stepped

    cpu = torch.device("cpu")
    assert agrees(end_step, cpu)
    assert not agrees(off_by_a_bit, cpu)
    assert choose_end_step(cpu) is end_step

"""What an image's last bits depend on beside its model and request, as the exact cache compares it between workers."""

from importlib.metadata import version

import torch

from worker.engine.provenance import arithmetic_of
from worker.networks.device import processor_name

CPU = torch.device("cpu")


def test_the_arithmetic_tells_the_processor_and_every_library_that_computes() -> None:
    computed = ", ".join(f"{name} {version(name)}" for name in ("reverie", "torch", "diffusers", "transformers"))
    assert arithmetic_of(CPU) == f"{processor_name(CPU)}, {computed}"


def test_whoever_decodes_in_tiles_or_checks_what_is_drawn_computes_otherwise() -> None:
    said = [
        arithmetic_of(CPU),
        arithmetic_of(CPU, 65536),
        arithmetic_of(CPU, 262144),
        arithmetic_of(CPU, safety_checker=True),
        arithmetic_of(CPU, 65536, safety_checker=True),
    ]
    assert len(set(said)) == len(said)

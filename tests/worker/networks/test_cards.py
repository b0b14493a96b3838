"""Which CUDA device is taken and in which number format, for machines that are not at hand."""

from dataclasses import dataclass

import pytest
import torch

from worker.networks.cuda.cards import card_dtype
from worker.networks.device import choose_device, choose_dtype, choose_memory_format

T4, A100, H200, GTX_1080 = (7, 5), (8, 0), (9, 0), (6, 1)


@dataclass
class Machine:
    """With cards of these capabilities, of which some can't compute."""

    capabilities: tuple[tuple[int, int], ...] = ()
    broken: tuple[int, ...] = ()
    driver: str = "Found no NVIDIA driver on your system."

    def count(self) -> int:
        return len(self.capabilities)

    def why_none(self) -> str:
        return self.driver

    def capability(self, index: int) -> tuple[int, int]:
        return self.capabilities[index]

    def try_out(self, index: int) -> None:
        if index in self.broken:
            raise RuntimeError("CUDA error: no kernel image is available for execution on the device\nmore")


def test_the_number_of_a_card_is_checked_at_the_start() -> None:
    two = Machine((A100, T4))
    assert choose_device("auto", two) == torch.device("cuda")
    assert choose_device("cuda:1", two) == torch.device("cuda:1")
    with pytest.raises(ValueError, match="asked for device 'cuda:7', but torch finds cuda:0 to cuda:1"):
        choose_device("cuda:7", two)
    with pytest.raises(ValueError, match="asked for device 'cuda:1', but torch finds cuda:0 alone"):
        choose_device("cuda:1", Machine((T4,)))


def test_what_keeps_torch_from_the_card_is_reported_in_torchs_words() -> None:
    old = Machine(driver="The NVIDIA driver on your system is too old (found version 12020).")
    with pytest.raises(ValueError, match=r"torch finds no CUDA device: The NVIDIA driver .* too old \(found"):
        choose_device("cuda", old)
    assert choose_device("auto", old) == torch.device("cpu")


def test_a_card_that_does_not_compute_is_found_out_before_a_model_is_called_broken() -> None:
    machine = Machine((GTX_1080, A100), broken=(0,))
    for wanted in ("auto", "cuda", "cuda:0"):
        with pytest.raises(ValueError, match="there and does not compute: CUDA error: no kernel image"):
            choose_device(wanted, machine)
    assert choose_device("cuda:1", machine) == torch.device("cuda:1")


def test_each_card_is_asked_for_its_own_number_format() -> None:
    machine = Machine((T4, A100))
    assert choose_dtype("auto", torch.device("cuda:0"), machine) is torch.float16
    assert choose_dtype("auto", torch.device("cuda:1"), machine) is torch.bfloat16


@pytest.mark.parametrize(
    ("capability", "chosen"),
    [
        (GTX_1080, torch.float32),
        ((7, 0), torch.float16),
        (T4, torch.float16),
        (A100, torch.bfloat16),
        ((8, 9), torch.bfloat16),
        (H200, torch.bfloat16),
        ((12, 0), torch.bfloat16),
    ],
)
def test_auto_takes_the_format_of_the_cards_matrix_units(capability: tuple[int, int], chosen: torch.dtype) -> None:
    assert card_dtype("auto", capability) is chosen
    assert card_dtype("float32", capability) is torch.float32


@pytest.mark.parametrize(
    ("wanted", "capability", "rule"),
    [
        ("bfloat16", T4, "7.5 only emulates bfloat16, which is of 8.0 and later: use float16"),
        ("bfloat16", GTX_1080, "use float32"),
        ("tf32", T4, "no TF32"),
        ("float16", GTX_1080, "no units for float16"),
        ("float8", H200, "got 'float8'"),
    ],
)
def test_a_format_that_the_card_lacks_is_refused(wanted: str, capability: tuple[int, int], rule: str) -> None:
    with pytest.raises(ValueError, match=rule):
        card_dtype(wanted, capability)
    assert card_dtype("tf32", A100) is torch.float32
    assert card_dtype("float16", T4) is torch.float16


@pytest.mark.parametrize(
    ("capability", "dtype", "chosen"),
    [
        (GTX_1080, torch.float32, torch.contiguous_format),
        (T4, torch.float32, torch.contiguous_format),
        (T4, torch.float16, torch.channels_last),
        (A100, torch.float32, torch.channels_last),
        (A100, torch.bfloat16, torch.channels_last),
        (H200, torch.bfloat16, torch.channels_last),
    ],
)
def test_images_lie_in_memory_as_the_cards_units_read_them(
    capability: tuple[int, int], dtype: torch.dtype, chosen: torch.memory_format
) -> None:
    machine = Machine((A100, capability))
    assert choose_memory_format(dtype, torch.device("cuda:1"), machine) is chosen
    assert choose_memory_format(dtype, torch.device("cpu"), machine) is torch.channels_last

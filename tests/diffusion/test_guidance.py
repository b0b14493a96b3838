"""Guidance with its contrast brought back, as the reference pipelines have it."""

import pytest
import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg

from worker.diffusion.guidance import RescaledRow, rescaled_guidance, with_rescaled


@pytest.mark.parametrize("rescale", [0.0, 0.3, 1.0])
def test_it_is_that_of_the_reference(rescale: float) -> None:
    conditional, unconditional = torch.randn(2, 3, 4, 9, 7, generator=torch.Generator().manual_seed(0))
    guided = unconditional + 7.5 * (conditional - unconditional)
    expected = rescale_noise_cfg(guided, conditional, guidance_rescale=rescale)
    for place in range(3):
        got = rescaled_guidance(conditional[place], unconditional[place], 7.5, rescale)
        torch.testing.assert_close(got, expected[place], rtol=1e-5, atol=1e-5)


def test_a_row_has_the_same_bits_alone_and_among_others() -> None:
    outputs = torch.randn(6, 3, 33, 31, generator=torch.Generator().manual_seed(1))
    rows = [RescaledRow(1, 0, 3.0, 0.7), RescaledRow(5, 4, 7.5, 0.2)]
    together = with_rescaled(outputs, rows)
    assert torch.equal(together[:6], outputs)
    for place, row in enumerate(rows):
        assert torch.equal(with_rescaled(outputs, [row])[6], together[6 + place])
    assert with_rescaled(outputs, []) is outputs

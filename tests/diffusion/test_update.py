"""Laws of the update rule: rows do not know of each other, and x_0 is kept in range as the model says."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from worker.diffusion import (
    Clip,
    DiffusionError,
    NoiseSchedule,
    PredictionType,
    SamplerName,
    SamplerPlan,
    Spacing,
    apply_update,
    initial_noise,
    plan,
    step_noise,
)

SCHEDULE = NoiseSchedule.linear()

CLIPS = st.sampled_from(
    [
        Clip(),
        Clip(clip_sample=False),
        Clip(clip_sample_range=2.5),
        Clip(thresholding=True, sample_max_value=3.0),
        Clip(thresholding=True, dynamic_thresholding_ratio=0.6, sample_max_value=1.5),
    ]
)
SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 7), st.integers(1, 7))


@st.composite
def plans(draw: st.DrawFn) -> SamplerPlan:
    sampler = draw(st.sampled_from(SamplerName))
    return plan(
        sampler,
        SCHEDULE,
        draw(st.integers(1, 12)),
        spacing=draw(st.sampled_from(Spacing)),
        prediction_type=draw(st.sampled_from(PredictionType)),
        eta=draw(st.sampled_from([0.0, 0.7])) if sampler == SamplerName.DDIM else 0.0,
    )


def bits(x: Tensor) -> Tensor:
    """float32 → its bit patterns, which distinguish 0.0 from -0.0."""
    return x.contiguous().view(torch.int32)


@settings(deadline=None, max_examples=80)
@given(data=st.data(), clip=CLIPS, shape=SHAPES)
def test_a_row_is_bitwise_the_same_alone_and_among_any_others(
    data: st.DataObject, clip: Clip, shape: tuple[int, int, int]
) -> None:
    """Rows of different samplers, step counts, steps and predictions. Alone, a row gets no z where it reads none."""
    chains = data.draw(st.lists(plans(), min_size=1, max_size=9))
    steps = [data.draw(st.integers(0, len(chain) - 1)) for chain in chains]
    seeds = torch.arange(len(chains)) + data.draw(st.integers(0, 2**53 - 100))
    x_t, output, previous, z, *earlier = (step_noise(seeds, torch.full_like(seeds, draw), shape) for draw in range(7))
    output[:, 0, 0, 0] = -0.0
    x_t[:, 0, 0, 0] = -0.0
    coefficients = torch.stack([chain.coefficients[step] for chain, step in zip(chains, steps, strict=True)])

    together = apply_update(x_t, output, previous, z, coefficients, clip, earlier)
    backwards = apply_update(
        x_t.flip(0),
        output.flip(0),
        previous.flip(0),
        z.flip(0),
        coefficients.flip(0),
        clip,
        [tensor.flip(0) for tensor in earlier],
    )
    for i, (chain, step) in enumerate(zip(chains, steps, strict=True)):
        row = slice(i, i + 1)
        alone = apply_update(
            x_t[row],
            output[row],
            previous[row] if chain.reads_history(step) else None,
            z[row] if chain.is_noisy[step] else None,
            coefficients[row],
            clip,
            [tensor[row] for tensor in earlier] if chain.earlier_outputs[step] else (),
        )
        for one, many, turned in zip(alone, together, backwards, strict=True):
            assert torch.equal(bits(one), bits(many[row]))
            assert torch.equal(bits(one), bits(turned.flip(0)[row]))


def batched(chains: list[SamplerPlan], seeds: Tensor, shape: tuple[int, int, int], clip: Clip) -> dict[int, Tensor]:
    """Run chains of any length side by side, each leaving when it ends, with a model that sees its timestep."""
    ends: dict[int, Tensor] = {}
    x = initial_noise(seeds, shape) * torch.tensor([chain.initial_scale for chain in chains]).view(-1, 1, 1, 1)
    x_0 = torch.zeros_like(x)
    earlier = [torch.full_like(x, torch.nan)] * 3
    for step in range(max(map(len, chains))):
        rows = [i for i, chain in enumerate(chains) if step < len(chain)]
        timesteps = torch.tensor([chains[i].timesteps[step] for i in rows]).view(-1, 1, 1, 1)
        coefficients = torch.stack([chains[i].coefficients[step] for i in rows])
        noisy = any(chains[i].is_noisy[step] for i in rows)
        z = step_noise(seeds[rows], torch.full((len(rows),), step), shape) if noisy else None
        output = x[rows] * (timesteps / 1000) - 0.1
        before = [tensor[rows] for tensor in earlier] if any(chains[i].earlier_outputs[step] for i in rows) else ()
        x[rows], x_0[rows] = apply_update(x[rows], output, x_0[rows], z, coefficients, clip, before)
        for i, kept in zip(rows, output, strict=True):
            if chains[i].keeps_output[step]:
                shifted = [kept, *(tensor[i] for tensor in earlier[:2])]
                earlier = [
                    tensor.clone().index_put((torch.tensor(i),), m) for tensor, m in zip(earlier, shifted, strict=True)
                ]
        ends |= {i: x[i].clone() for i in rows if step == len(chains[i]) - 1}
    return ends


@settings(deadline=None, max_examples=25)
@given(chains=st.lists(plans(), min_size=1, max_size=6), clip=CLIPS, seed=st.integers(0, 2**53 - 10))
def test_a_whole_chain_is_bitwise_the_same_alone_and_in_a_mixture(
    chains: list[SamplerPlan], clip: Clip, seed: int
) -> None:
    seeds = torch.arange(len(chains)) + seed
    together = batched(chains, seeds, (2, 3, 5), clip)
    for i, chain in enumerate(chains):
        assert torch.equal(bits(batched([chain], seeds[i : i + 1], (2, 3, 5), clip)[0]), bits(together[i]))


def test_arguments_are_left_as_they_were() -> None:
    chain = plan("dpmpp_2m", SCHEDULE, 5)
    x_t, output, previous, z = (torch.full((1, 1, 2, 2), value) for value in (3.0, 0.5, -1.0, 2.0))
    apply_update(x_t, output, previous, z, chain.coefficients[2:3], Clip(thresholding=True))
    for tensor, value in ((x_t, 3.0), (output, 0.5), (previous, -1.0), (z, 2.0)):
        assert tensor.flatten().tolist() == [value] * 4


def test_what_a_row_does_not_use_is_not_read() -> None:
    chain = plan("ddim", SCHEDULE, 5)
    nothing = torch.full((1, 1, 2, 2), torch.nan)
    x_next, x_0 = apply_update(
        torch.ones(1, 1, 2, 2), torch.ones(1, 1, 2, 2), nothing, nothing, chain.coefficients[:1], Clip()
    )
    assert bool(torch.isfinite(x_next).all())
    assert bool(torch.isfinite(x_0).all())


def test_not_a_number_is_passed_on_in_its_row_alone() -> None:
    chain = plan("ddim", SCHEDULE, 5)
    output = torch.ones(2, 1, 2, 2)
    output[1, 0, 1, 1] = torch.nan
    for clip in (Clip(), Clip(thresholding=True)):
        x_next, _ = apply_update(
            torch.ones(2, 1, 2, 2), output, torch.zeros(2, 1, 2, 2), None, chain.coefficients[:1].expand(2, -1), clip
        )
        assert bool(torch.isfinite(x_next[0]).all())
        assert bool(x_next[1].isnan().any())


def test_a_half_precision_output_is_taken_as_float32() -> None:
    chain = plan("ddpm", SCHEDULE, 5)
    x, output = torch.ones(1, 1, 2, 2), torch.full((1, 1, 2, 2), 0.5, dtype=torch.bfloat16)
    halves = apply_update(x, output, x, x, chain.coefficients[:1], Clip())
    singles = apply_update(x, output.float(), x, x, chain.coefficients[:1], Clip())
    assert [t.dtype for t in halves] == [torch.float32] * 2
    assert all(torch.equal(half, single) for half, single in zip(halves, singles, strict=True))


def test_clipping_clamps_to_the_range() -> None:
    x_0 = torch.tensor([-3.0, -0.5, 0.9, 1.2]).view(1, 1, 2, 2)
    assert Clip()(x_0).flatten().tolist() == pytest.approx([-1, -0.5, 0.9, 1])
    assert Clip(clip_sample_range=2)(x_0).flatten().tolist() == pytest.approx([-2, -0.5, 0.9, 1.2])
    assert Clip(clip_sample=False)(x_0) is x_0


@settings(deadline=None, max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    shape=SHAPES,
    ratio=st.floats(0, 1),
    largest=st.sampled_from([0.5, 1.0, 2.0, 100.0]),
)
def test_dynamic_thresholding_scales_each_image_by_its_own_quantile(
    seed: int, shape: tuple[int, int, int], ratio: float, largest: float
) -> None:
    """Saharia et al. 2022, section 2.3, written out with torch.quantile."""
    x_0 = initial_noise(torch.arange(3) + seed, shape) * torch.tensor([0.1, 1.0, 5.0]).view(3, 1, 1, 1)
    got = Clip(thresholding=True, dynamic_thresholding_ratio=ratio, sample_max_value=largest)(x_0)
    for image, result in zip(x_0, got, strict=True):
        s = min(max(float(torch.quantile(image.double().abs().flatten(), ratio)), 1.0), largest)
        torch.testing.assert_close(result, image.clamp(-s, s) / s, rtol=1e-5, atol=1e-6)
    assert float(got.abs().max()) <= 1


@pytest.mark.parametrize(
    ("name", "value"),
    [("clip_sample_range", 0.0), ("dynamic_thresholding_ratio", 1.5), ("sample_max_value", -1.0)],
)
def test_a_clip_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(DiffusionError, match=rf"need .*{name}.*, got {value}"):
        Clip(**{name: value})  # type: ignore[arg-type]

"""Same seed, same pixels: an image depends on its checkpoint, seed, plan and condition, and on nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.worker.engine.harness import CPU, Driver, ask, draw, filled_pool, plain, same_pixels, trajectories
from tests.worker.engine.mixtures import Alone, Mixture, check_neighbours_do_not_matter, mixtures
from tests.worker.networks.prepared import prepared
from tests.worker.tiny_models import LABELS, cifar_10_unet
from worker.conditioning.labels import Unconditional
from worker.contract import KARRAS_SAMPLERS, SamplerName, SamplingRequest, Spacing
from worker.diffusion.noise import initial_noise
from worker.engine.runner import run_step
from worker.engine.trajectory import Trajectory
from worker.models.loaded_model import LoadedModel
from worker.models.loading import load_checkpoint
from worker.models.pool import ModelPool
from worker.networks.architecture import NetworkSource
from worker.networks.cpu.forms import prepare_on_cpu
from worker.networks.cpu.team import CpuTeam
from worker.networks.cpu.threaded import ThreadedDenoiser
from worker.networks.device import choose_dtype
from worker.networks.network_input import InputSpec, NetworkInput
from worker.networks.unet2d import UNet2D
from worker.store.model_store import Checkpoint, ModelStore


@pytest.fixture(scope="module")
def pool(store: ModelStore) -> ModelPool:
    """On two threads; the networks of other tests run on one."""
    return filled_pool(store, lambda checkpoint: load_checkpoint(checkpoint, CPU, torch.float32, threads=2))


@st.composite
def requests(draw: st.DrawFn, max_steps: int = 7) -> SamplingRequest:
    sampler = draw(st.sampled_from(SamplerName))
    return ask(
        seed=draw(st.sampled_from([0, 1, 2, 7, 2**32, 2**53 - 4])),
        steps=draw(st.integers(1, max_steps)),
        batch=draw(st.integers(1, 3)),
        sampler=sampler,
        eta=draw(st.sampled_from([0.0, 1.0])) if sampler == SamplerName.DDIM else 0.0,
        spacing=draw(st.sampled_from([None, *Spacing])),
        karras=draw(st.booleans()) if sampler in KARRAS_SAMPLERS else False,
        class_label=draw(st.sampled_from([None, *range(len(LABELS))])),
        guidance_scale=draw(st.sampled_from([1.0, 1.0, 0.0, 3.5])),
        guidance_rescale=draw(st.sampled_from([0.0, 0.7])),
        guidance_interval=draw(st.sampled_from([None, None, (0.3, 0.7), (0.0, 0.5)])),
    )


@settings(max_examples=10, deadline=None)
@given(
    mixture=mixtures(requests()),
    max_batch=st.sampled_from([1, 2, 3, 5, 8, 16]),
    canceled=st.sets(st.integers(0, 5), max_size=1),
)
def test_an_image_does_not_depend_on_its_neighbours(
    pool: ModelPool, alone: Alone, mixture: Mixture, max_batch: int, canceled: set[int]
) -> None:
    """Any mixture, in any order, joining late, set aside by a small batch and resumed, a neighbour leaving early."""
    check_neighbours_do_not_matter(Driver(pool, max_batch), alone, mixture, canceled)


@pytest.fixture(scope="module", params=["float32", pytest.param("bfloat16", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest, tiny_store: ModelStore) -> LoadedModel:
    return load_checkpoint(tiny_store.checkpoint("tiny"), CPU, choose_dtype(request.param, CPU), threads=2)


def rows_of(model: LoadedModel, asked: list[SamplingRequest], behind: list[int]) -> list[Trajectory]:
    """One trajectory per image, each with some of its steps behind it, walked alone."""
    rows = []
    for number, request in enumerate(asked):
        for row in trajectories(str(number), request, model):
            for _ in range(min(behind[number % len(behind)], row.steps - 1)):
                run_step([row], max_network_rows=16).commit()
            rows.append(row)
    return rows


@settings(max_examples=8, deadline=None)
@given(asked=st.lists(requests(), min_size=2, max_size=8), behind=st.lists(st.integers(0, 6), min_size=1, max_size=4))
def test_a_step_is_bitwise_the_same_alone_and_among_others(
    model: LoadedModel, asked: list[SamplingRequest], behind: list[int]
) -> None:
    """Not the rounded pixels only: the float32 state itself, whatever the batch, its size and its order."""
    rows = rows_of(model, asked, behind)
    together = run_step(rows, max_network_rows=64)
    backwards = run_step(rows[::-1], max_network_rows=5)
    for i, row in enumerate(rows):
        by_itself = run_step([row], max_network_rows=64)
        for other, place in ((together, i), (backwards, len(rows) - 1 - i)):
            assert torch.equal(by_itself.x_t[0], other.x_t[place]), (row.job_id, row.step)
            assert torch.equal(by_itself.x_0[0], other.x_0[place])


@pytest.mark.parametrize("sampler", [SamplerName.DDIM, SamplerName.DPMPP_2M, SamplerName.PLMS])
def test_a_row_set_aside_keeps_its_own_state_alive_and_no_more(pool: ModelPool, sampler: SamplerName) -> None:
    """Not its batch's, and the last x_0 only where the sampler reads it."""
    driver = Driver(pool, max_batch=4)
    driver.submit("long", ask(steps=50, batch=4, sampler=sampler))
    driver.step()
    driver.step()
    driver.submit("short", ask(seed=7, steps=2, batch=3))
    driver.step()
    aside = [row for row in driver.engine._requests["long"].rows if row.step == 2]
    assert len(aside) == 3
    for row in aside:
        assert row.x_t is not None
        assert row.x_t.untyped_storage().nbytes() == row.x_t.nbytes == 8 * 8 * 4
        assert (row.x_0_previous is not None) == (sampler == SamplerName.DPMPP_2M)
        if row.x_0_previous is not None:
            assert row.x_0_previous.untyped_storage().nbytes() == row.x_0_previous.nbytes
        assert len(row.earlier_outputs) == (sampler == SamplerName.PLMS)
        for output in row.earlier_outputs:
            assert output.untyped_storage().nbytes() == output.nbytes


@pytest.mark.parametrize("sampler", [SamplerName.DDPM, SamplerName.DPMPP_2M])
def test_an_image_is_the_same_when_its_job_runs_again(tiny_store: ModelStore, sampler: SamplerName) -> None:
    """A worker that died and came back loads the weights anew and begins at step 0."""
    request = ask(seed=5, steps=6, batch=3, sampler=sampler, class_label=1)
    assert same_pixels(draw(filled_pool(tiny_store), request), draw(filled_pool(tiny_store), request))


def test_requests_of_different_step_counts_and_samplers_share_a_batch(pool: ModelPool, alone: Alone) -> None:
    """Seen in the engine's own counters, and each gives the pixels that it gives alone."""
    asked = {
        "ddim": ask(seed=3, steps=9, batch=2, sampler=SamplerName.DDIM, class_label=0),
        "ddpm": ask(seed=3, steps=6, batch=1, sampler=SamplerName.DDPM, class_label=2, guidance_scale=2.0),
        "dpmpp": ask(seed=3, steps=4, batch=2, sampler=SamplerName.DPMPP_2M),
    }
    driver = Driver(pool, max_batch=8)
    for job_id, request in asked.items():
        driver.submit(job_id, request)
    driver.finish()
    counters = driver.engine.counters()
    assert (counters.requests_in_batch_max, counters.step_counts_in_batch_max, counters.samplers_in_batch_max) == (
        3,
        3,
        3,
    )
    assert (counters.steps, counters.image_steps, counters.batch_size_max) == (9, 2 * 9 + 6 + 2 * 4, 5)
    for job_id, request in asked.items():
        assert same_pixels(driver.images(job_id), alone.images(request))


def test_other_seeds_give_other_pixels(alone: Alone) -> None:
    """The laws above would hold for a blank image too."""
    drawn = [alone(ask(seed=seed, class_label=label)) for seed, label in ((0, 0), (1, 0), (0, 1), (0, None))]
    assert all(not np.array_equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])
    assert all(len(np.unique(image)) > 8 for image in drawn)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 2])
def test_a_step_is_bitwise_the_same_in_every_batch_size_on_the_cifar_10_configuration(threads: int) -> None:
    """35,746,307 parameters, attention at 16x16, one head: other shapes, so other kernels, than the tiny model."""
    unet = cifar_10_unet().eval()
    assert sum(p.numel() for p in unet.parameters()) == 35_746_307
    team = CpuTeam(threads)
    denoise = ThreadedDenoiser(prepared(unet, (3, 32, 32), team), team)
    x_t = initial_noise(torch.arange(6), (3, 32, 32))
    inputs = NetworkInput(x_t, torch.linspace(0, 999, 6).long())
    together = denoise.one_thread(inputs)
    for way in (denoise.narrow, denoise.wide):
        for rows in ([4], [5, 3, 1]):
            assert torch.equal(way(inputs[rows]), together[rows]), rows


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "asked"),
    [
        (
            torch.float32,
            [
                ask(seed=1, steps=3, batch=5, sampler=SamplerName.DDIM),
                ask(seed=50, steps=2, batch=1, sampler=SamplerName.DDPM),
                ask(seed=70, steps=2, batch=4, sampler=SamplerName.DPMPP_2M),
            ],
        ),
        (
            torch.bfloat16,
            [
                ask(seed=1, steps=2, batch=2, sampler=SamplerName.DDIM),
                ask(seed=70, steps=2, batch=2, sampler=SamplerName.DPMPP_2M),
            ],
        ),
    ],
    ids=["float32", "bfloat16"],
)
def test_an_image_of_the_cifar_10_configuration_does_not_depend_on_its_neighbours(
    tiny_store: ModelStore, dtype: torch.dtype, asked: list[SamplingRequest]
) -> None:
    """A mixture of samplers and step counts, joining late, set aside by a small batch, against each image alone.

    Alone, the images are drawn by a network that was prepared anew, as in a worker that died and came back. It has
    every kind of layer of the configuration, and half as many of them.
    """

    def fresh_pool() -> ModelPool:
        def load(checkpoint: Checkpoint) -> LoadedModel:
            like = load_checkpoint(checkpoint, CPU, torch.float32)
            shape, open_network = (3, 32, 32), lambda: cifar_10_unet(1).eval().to(dtype)
            source = NetworkSource(UNet2D(), open_network, InputSpec(shape), dtype, f"cifar-10 {dtype}", "cifar-10")
            denoise = prepare_on_cpu(source, threads=2).denoise
            return replace(like, denoise=denoise, shape=shape, conditioner=Unconditional("tiny"))

        return filled_pool(tiny_store, load)

    rows = sum(request.batch for request in asked)
    driver = Driver(fresh_pool(), max_batch=rows - 1)
    for number, request in enumerate(asked):
        driver.submit(str(number), request)
        driver.step()
    driver.finish()
    assert driver.engine.counters().batch_size_max == rows - 1
    other = fresh_pool()
    for number, request in enumerate(asked):
        images = driver.images(str(number))
        for i in {0, request.batch - 1}:
            alone = draw(other, plain(request, seed=request.seed + i, batch=1), max_batch=1)
            assert same_pixels([images[i]], alone)

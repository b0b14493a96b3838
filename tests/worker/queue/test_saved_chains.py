"""The bytes of a saved state: what goes in comes out, and what was not written by us for this request is refused."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.conftest import ValkeyHandle
from tests.worker.queue.conftest import Jobs, leases_of
from worker.contract import ImageFormat, SamplingRequest, chain_key
from worker.engine.messages import SavedChain, SavedImage
from worker.queue.claim_terms import ClaimTerms
from worker.queue.held_job import HeldJobs
from worker.queue.redis_health import RedisHealth
from worker.queue.saved_chains import SavedChains, UnreadableChainError, pack, unpack

REQUEST = SamplingRequest(model="digits", seed=3, steps=50, batch=2)
VERSION = "000012000-3f2a9c1b"


def state(seed: int, shape: tuple[int, int, int] = (1, 4, 4)) -> Any:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def chain(*images: SavedImage) -> SavedChain:
    return SavedChain(
        "digits",
        VERSION,
        "ab" * 32,
        "float32",
        images or (SavedImage(7, state(1), state(2), full_x_t=state(3)), SavedImage(0, None, None)),
    )


def same(one: SavedChain, other: SavedChain) -> bool:
    def bits(saved: SavedChain) -> list[object]:
        arrays: list[Any] = [
            x
            for image in saved.images
            for x in (
                image.x_t,
                image.x_0_previous,
                image.entry,
                image.full_x_t,
                len(image.earlier_outputs),
                *image.earlier_outputs,
            )
        ]
        arrays += [x for image in saved.images for _, x in sorted(image.frames.items())]
        progress = [(image.leg, image.step, *sorted(image.frames)) for image in saved.images]
        kept = [(x.shape, x.tobytes()) if isinstance(x, np.ndarray) else x for x in arrays]
        return [saved.version, saved.dtype, progress, *kept]

    return bits(one) == bits(other)


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.tuples(st.integers(0, 999), st.booleans()), min_size=1, max_size=5),
    st.tuples(st.integers(1, 4), st.integers(1, 8), st.integers(1, 8)),
)
def test_a_state_comes_back_bit_for_bit(images: list[tuple[int, bool]], shape: tuple[int, int, int]) -> None:
    saved = chain(
        *(
            SavedImage(
                step, state(step, shape) if step else None, state(-step % 7, shape) if step and history else None
            )
            for step, history in images
        )
    )
    assert same(unpack(pack(saved, REQUEST), REQUEST), saved)


def test_images_of_several_legs_and_shapes_come_back() -> None:
    small, large = state(1, (1, 4, 4)), state(2, (3, 8, 8))
    images = (
        SavedImage(7, small, None),
        SavedImage(2, large, state(3, (3, 8, 8)), 1, small),
        SavedImage(0, None, None),
        SavedImage(5, small, None, earlier_outputs=(state(5, (1, 4, 4)), state(6, (1, 4, 4)))),
    )
    assert same(unpack(pack(chain(*images), REQUEST), REQUEST), chain(*images))


def test_frames_come_back_with_the_states() -> None:
    frames = {2: np.arange(12, dtype=np.uint8).reshape(2, 2, 3), 4: np.zeros((2, 2, 3), np.uint8)}
    images = (SavedImage(5, state(1), state(2), frames=frames), SavedImage(0, None, None))
    data = pack(chain(*images), REQUEST)
    assert same(unpack(data, REQUEST), chain(*images))
    with pytest.raises(UnreadableChainError, match="24 of frames"):
        unpack(data[:-1], REQUEST)


def test_not_a_number_and_minus_zero_are_numbers_too() -> None:
    odd = np.array([[[np.nan, -0.0, np.inf, 1e-45]]], np.float32)
    assert same(unpack(pack(chain(SavedImage(1, odd, None)), REQUEST), REQUEST), chain(SavedImage(1, odd, None)))


def test_a_state_belongs_to_one_request_whatever_its_version_and_file_format() -> None:
    data = pack(chain(), REQUEST)
    for alike in ({"version": VERSION}, {"format": ImageFormat.WEBP}):
        unpack(data, REQUEST.model_copy(update=alike))
    label = {"condition": {"kind": "label", "label": 1}}
    for other in ({"seed": 4}, {"steps": 51}, {"sampler": "ddpm"}, {"guidance": {"scale": 2.0}}, label):
        with pytest.raises(UnreadableChainError, match="another request"):
            unpack(data, SamplingRequest.model_validate(REQUEST.model_dump() | other))


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_no_bytes_whatever_they_are_break_the_worker(data: st.DataObject) -> None:
    good = pack(chain(), REQUEST)
    cut = data.draw(st.integers(0, len(good)))
    broken = data.draw(st.one_of(st.binary(max_size=60), st.just(good[:cut]), st.just(good + b"x")))
    if broken != good:
        with pytest.raises(UnreadableChainError):
            unpack(broken, REQUEST)


def test_a_header_that_contradicts_itself_is_refused() -> None:
    good = pack(chain(), REQUEST)
    for wrong in (
        good.replace(b'"layout": 4', b'"layout": 3'),
        good.replace(b'"entry": null', b'"entry": 7   '),
        good.replace(b'"x_t": [1, 4, 4]', b'"x_t": [1, 4, 5]'),
        good.replace(b'"x_t": [1, 4, 4]', b'"x_t": [-1,-4,4]'),
    ):
        assert wrong != good
        with pytest.raises(UnreadableChainError):
            unpack(wrong, REQUEST)


def test_a_state_is_written_by_the_owner_alone_expires_and_goes_with_its_job(jobs: Jobs, valkey: ValkeyHandle) -> None:
    leases = leases_of(valkey.client, lease_s=60)
    held = HeldJobs()
    chains = SavedChains(valkey.client, leases, held, RedisHealth())
    job_id = jobs.add(3, steps=50, batch=2)

    def claim() -> Any:
        (job,) = leases.claim(None, ClaimTerms(1)).jobs
        held.add(job)
        held.enter_engine(job)
        return job

    first = claim()
    assert chains.read(first) is None
    chains.write(first, chain())
    assert 0 < valkey.client.ttl(chain_key(job_id)) <= 3600
    leases.release([first])
    second = claim()
    left = chains.read(second)
    assert left is not None
    assert same(left, chain())

    held.add(first)  # it does not know yet that it lost the job
    chains.write(first, chain(SavedImage(1, state(9), None)))
    unchanged = chains.read(second)
    assert unchanged is not None
    assert same(unchanged, chain())

    jobs.cancel(job_id)
    leases.recover(stranded_s=60)
    assert valkey.client.ttl(chain_key(job_id)) > 0

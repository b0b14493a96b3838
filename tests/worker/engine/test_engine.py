"""What the engine promises the RQ worker: exactly one ending for each request, whatever goes wrong."""

import threading
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from tests.worker.engine.harness import (
    Driver,
    FaultyDenoiser,
    HandClock,
    ask,
    draw,
    filled_pool,
    load_float32,
    loading_with,
    plain,
    same_pixels,
    trajectories,
)
from tests.worker.networks.prepared import inputs_of
from tests.worker.tiny_models import CHAIN_CONFIG, LABELS, NULL_LABEL, TINY, publish_tiny
from worker.contract import MAX_SEED, SamplerName, SamplingRequest
from worker.diffusion.pixels import to_pixels
from worker.engine import engine
from worker.engine.messages import (
    Admitted,
    Canceled,
    EnginePort,
    EngineRequest,
    Failed,
    Progressed,
    SavedChain,
    Succeeded,
)
from worker.engine.runner import run_step
from worker.models.loaded_model import LoadedModel
from worker.models.pool import ModelPool
from worker.networks.unet2d import CLASS_LABELS
from worker.store.model_store import ModelStore


def test_a_request_is_admitted_progresses_and_succeeds(pool: ModelPool) -> None:
    driver = Driver(pool)
    port: EnginePort = driver.engine
    driver.submit("job", ask(steps=3, batch=2))
    driver.finish()
    kinds = [type(event) for event in driver.events]
    assert kinds == [Admitted, Progressed, Succeeded]
    assert {event.job_id for event in driver.events} == {"job"}
    assert [(image.shape, str(image.dtype)) for image in driver.images("job")] == [((8, 8, 1), "uint8")] * 2
    assert (port.counters().requests_succeeded, port.counters().image_steps) == (1, 6)


def test_pixels_are_rounded_and_clamped_and_channels_come_last() -> None:
    x_0 = torch.tensor([[[-1.0, 1.0]], [[-7.0, 7.0]], [[0.0, 0.25]]])  # [3, 1, 2]
    assert to_pixels(x_0).tolist() == [[[0, 0, 128], [255, 255, 159]]]


def test_images_of_a_request_come_in_order_although_they_are_split_over_batches(pool: ModelPool) -> None:
    request = ask(seed=10, steps=2, batch=7)
    driver = Driver(pool, max_batch=3)
    driver.submit("job", request)
    driver.finish()
    singles = [draw(pool, plain(request, seed=10 + i, batch=1))[0] for i in range(7)]
    assert same_pixels(driver.images("job"), singles)
    assert driver.engine.counters().batch_size_max == 3


def test_guidance_of_one_is_the_conditional_model_and_of_zero_the_unconditional_one(model: LoadedModel) -> None:
    """Bitwise, and each for the price of one row."""
    asked: list[list[int]] = []

    def listen(x_t: Tensor, timesteps: Tensor) -> None:
        asked[-1].append(len(x_t))

    heard = replace(model, denoise=FaultyDenoiser(model.denoise, listen))

    def step(class_label: int | None = None, guidance_scale: float = 1.0) -> Tensor:
        asked.append([])
        request = ask(class_label=class_label, guidance_scale=guidance_scale)
        return run_step(trajectories("job", request, heard), max_network_rows=8).x_t

    conditional, unconditional = step(class_label=2), step()
    assert torch.equal(step(class_label=2, guidance_scale=1.0), conditional)
    assert torch.equal(step(class_label=2, guidance_scale=0.0), unconditional)
    assert not torch.equal(conditional, unconditional)
    assert asked == [[1]] * 4
    step(class_label=2, guidance_scale=2.0)
    assert asked[-1] == [2]


def test_guidance_follows_its_formula(model: LoadedModel) -> None:
    """output = unconditional + w (conditional - unconditional), compared before any clipping."""
    w = 3.0
    outputs = {}
    x_t = run_step(trajectories("job", ask(), model), max_network_rows=8).x_t  # any state
    for label in (2, NULL_LABEL):
        outputs[label] = model.denoise(inputs_of(x_t, torch.tensor([500]), torch.tensor([label])))
    mixed = outputs[NULL_LABEL] + w * (outputs[2] - outputs[NULL_LABEL])
    fixed = replace(
        model, denoise=lambda inputs: torch.cat([outputs[int(label)] for label in inputs.named[CLASS_LABELS]])
    )
    answer = replace(model, denoise=lambda inputs: mixed)
    guided = trajectories("job", ask(class_label=2, guidance_scale=w), fixed)
    plain_row = trajectories("job", ask(class_label=2), answer)
    assert torch.equal(run_step(guided, max_network_rows=8).x_t, run_step(plain_row, max_network_rows=8).x_t)


def test_guided_rows_are_counted_twice_in_the_u_nets_batch(tiny_store: ModelStore) -> None:
    calls: list[int] = []

    def listen(x_t: Tensor, timesteps: Tensor) -> None:
        calls.append(len(x_t))

    driver = Driver(filled_pool(tiny_store, loading_with(listen)), max_batch=4)
    driver.submit("guided", ask(steps=3, batch=3, class_label=1, guidance_scale=4.0))
    driver.submit("plain", ask(steps=3, batch=3, class_label=1))
    driver.finish()
    assert sum(calls) == 3 * 3 * 2 + 3 * 3
    assert max(calls) == 4


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        (ask(class_label=4), "need class_label < 4 for model tiny, got 4"),
        (ask(steps=501, model="short"), "501"),
        (ask(class_label=0, model="short"), "no classes"),
        (ask(guidance_scale=2.0, model="short"), "no classes to guide by"),
        (ask(sampler=SamplerName.DDPM, eta=0.5), "eta"),
        (ask(seed=MAX_SEED, batch=2), "seed"),
        (ask(model="absent"), "no model absent"),
        (ask(version="000000009-00000000"), "no version 000000009-00000000"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_a_model_cannot_draw_fails_with_value_and_rule_and_the_engine_lives_on(
    mixed_pool: ModelPool, request_: SamplingRequest, text: str
) -> None:
    driver = Driver(mixed_pool)
    driver.submit("bad", request_)
    driver.submit("good", ask(steps=2))
    driver.finish()
    failed = driver.failure("bad")
    assert text in failed.detail
    assert not failed.retryable
    assert failed.code in ("bad_job", "model_unavailable")
    assert len(driver.images("good")) == 1
    assert mixed_pool.pinned() == set(), "what failed holds no model"


@pytest.fixture(scope="module")
def mixed_pool(tmp_path_factory: pytest.TempPathFactory) -> ModelPool:
    """`tiny`, and `short`: unconditional, 500 training timesteps."""
    store = ModelStore(tmp_path_factory.mktemp("mixed"))
    publish_tiny(store)
    publish_tiny(store, "short", conditional=False, chain_config={**CHAIN_CONFIG, "num_train_timesteps": 500})
    return filled_pool(store)


def test_an_unconditional_model_draws(mixed_pool: ModelPool) -> None:
    assert len(draw(mixed_pool, ask(model="short", batch=2))) == 2


def test_two_models_take_turns(mixed_pool: ModelPool) -> None:
    driver = Driver(mixed_pool)
    driver.submit("a", ask(model=TINY, steps=5))
    driver.submit("b", ask(model="short", steps=4))
    driver.finish()
    assert driver.engine.counters().batch_size_max == 1
    assert same_pixels(driver.images("a"), draw(mixed_pool, ask(model=TINY, steps=5)))
    assert same_pixels(driver.images("b"), draw(mixed_pool, ask(model="short", steps=4)))


@pytest.mark.parametrize("after", [0, 1, 3])
def test_a_canceled_request_leaves_at_the_next_step_boundary(tiny_store: ModelStore, after: int) -> None:
    pool = filled_pool(tiny_store)
    driver = Driver(pool)
    driver.submit("doomed", ask(steps=9, batch=3))
    driver.submit("other", ask(steps=6))
    for _ in range(after):
        driver.step()
    driver.engine.cancel("doomed")
    driver.engine.cancel("unknown")
    driver.finish()
    driver.engine.cancel("doomed")
    driver.finish()
    assert [type(e) for e in driver.events if e.job_id == "doomed" and not isinstance(e, Progressed)] == [
        Admitted,
        Canceled,
    ]
    assert len(driver.images("other")) == 1
    assert driver.engine.counters().image_steps == 3 * after + 6
    assert driver.engine.counters().requests_canceled == 1
    assert pool.pinned() == set()


def test_a_request_can_be_canceled_while_it_waits_for_its_model(tiny_store: ModelStore) -> None:
    pool = ModelPool(tiny_store, load_float32)
    driver = Driver(pool)
    driver.submit("job", ask())
    driver.engine.take_messages()
    assert driver.engine.images_waiting() == 1
    driver.engine.cancel("job")
    driver.finish()
    assert [type(e) for e in driver.events] == [Canceled]
    assert pool.pinned() == set()


def test_a_job_that_comes_twice_while_in_flight_is_told_once(pool: ModelPool) -> None:
    driver = Driver(pool)
    driver.submit("job", ask())
    driver.submit("job", ask())
    driver.finish()
    assert len(driver.reported(Succeeded)) == 1


def not_a_number_at(timestep_below: int) -> Callable[[Tensor, Tensor], Tensor | None]:
    def answer(x_t: Tensor, timesteps: Tensor) -> Tensor | None:
        """nan for rows near the end of their chain, zeros else."""
        broken = (timesteps < timestep_below).view(-1, 1, 1, 1)
        return torch.where(broken, torch.nan, torch.zeros_like(x_t))

    return answer


def test_a_picture_that_is_not_a_number_fails_alone_and_names_seed_and_step(tiny_store: ModelStore) -> None:
    driver = Driver(filled_pool(tiny_store, loading_with(not_a_number_at(600))))
    driver.submit("bad", ask(seed=40, steps=5, batch=2))  # timesteps 800, 600, 400, ...
    driver.submit("good", ask(seed=41, steps=1))  # timestep 0 alone is below, see the spacing
    driver.finish()
    failed = driver.failure("bad")
    assert (failed.code, failed.retryable) == ("not_finite", False)
    assert failed.detail == "the image of seed 40 at step 3 of 5 is not a number"
    assert driver.failure("good").code == "not_finite"
    assert driver.engine.counters().requests_failed == 2


@pytest.mark.parametrize("value", [torch.inf, -torch.inf, torch.nan])
def test_infinity_is_found_although_clipping_would_hide_it(tiny_store: ModelStore, value: float) -> None:
    def answer(x_t: Tensor, timesteps: Tensor) -> Tensor:
        outputs = torch.zeros_like(x_t)
        outputs[timesteps == 0, 0, 3, 3] = value  # the request of one step is asked at timestep 0
        return outputs

    driver = Driver(filled_pool(tiny_store, loading_with(answer)))
    driver.submit("bad", ask(seed=7, steps=1))
    driver.submit("good", ask(seed=8, steps=4, spacing="trailing"))
    driver.finish()
    assert driver.failure("bad").detail == "the image of seed 7 at step 1 of 1 is not a number"
    assert len(driver.images("good")) == 1


def test_out_of_memory_halves_the_batch_and_goes_on(tiny_store: ModelStore) -> None:
    calls: list[int] = []

    def at_most_two(x_t: Tensor, timesteps: Tensor) -> None:
        calls.append(len(x_t))
        if len(x_t) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")

    driver = Driver(filled_pool(tiny_store, loading_with(at_most_two)), max_batch=16)
    request = ask(steps=3, batch=5)
    driver.submit("job", request)
    driver.finish()
    assert driver.engine.max_batch == 2
    assert calls[0] == 5
    assert max(calls[1:]) == 2
    assert same_pixels(driver.images("job"), draw(filled_pool(tiny_store), request))


def test_a_request_that_does_not_fit_alone_fails_and_may_be_tried_elsewhere(tiny_store: ModelStore) -> None:
    def never(x_t: Tensor, timesteps: Tensor) -> None:
        raise RuntimeError("[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory")

    driver = Driver(filled_pool(tiny_store, loading_with(never)))
    driver.submit("job", ask(batch=3))
    driver.finish()
    assert (driver.failure("job").code, driver.failure("job").retryable) == ("out_of_memory", True)


@pytest.mark.parametrize("step", ["admit", "resume"])
def test_a_defect_in_the_admission_of_a_request_fails_it_alone(
    tiny_store: ModelStore, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def defective(*given: object) -> None:
        raise ArithmeticError("a defect")

    pool, checkpoint = filled_pool(tiny_store), tiny_store.checkpoint(TINY)
    driver = Driver(pool)
    chain = SavedChain(TINY, checkpoint.version, checkpoint.manifest.weights_sha256, "float32", ())
    with monkeypatch.context() as patched:
        patched.setattr(engine, step, defective)
        driver.engine.submit(EngineRequest("bad", ask(steps=2), resume=chain if step == "resume" else None))
        driver.engine.take_messages()
    driver.submit("good", ask(steps=2))
    driver.finish()
    failed = driver.failure("bad")
    assert (failed.code, failed.retryable) == ("engine_error", True)
    assert "a defect" in failed.detail
    assert len(driver.images("good")) == 1
    assert pool.pinned() == set(), "what failed holds no model"


def test_an_exception_in_a_batch_fails_its_culprit_and_spares_the_others(tiny_store: ModelStore) -> None:
    def allergic(x_t: Tensor, timesteps: Tensor) -> None:
        if 999 in timesteps.tolist():
            raise RuntimeError("a kernel failed")

    driver = Driver(filled_pool(tiny_store, loading_with(allergic)))
    good = ask(steps=4, batch=2, class_label=1)
    driver.submit("good", good)
    driver.submit("bad", ask(steps=4, batch=2, spacing="trailing"))  # begins at timestep 999
    driver.finish()
    failed = driver.failure("bad")
    assert (failed.code, failed.retryable) == ("engine_error", True)
    assert "a kernel failed" in failed.detail
    assert same_pixels(driver.images("good"), draw(filled_pool(tiny_store), good))
    assert driver.engine.counters().requests_failed == 1


def test_a_request_is_charged_the_steps_that_it_was_in_and_a_row_its_share_of_them(tiny_store: ModelStore) -> None:
    clock = HandClock()

    def take_two_seconds(x: Tensor, t: Tensor) -> None:
        clock.now += 2.0

    driver = Driver(filled_pool(tiny_store, loading_with(take_two_seconds)), max_batch=2, clock=clock)
    assert driver.engine.row_step_s() == {}
    driver.submit("long", ask(steps=9, batch=2))
    driver.step()
    driver.submit("short", ask(steps=3, batch=2))
    for _ in range(2):
        driver.step()
        clock.now += 60.0  # nobody's step
    assert driver.engine.ran_s() == {"long": 2.0, "short": 4.0}
    assert driver.engine.row_step_s() == {TINY: 1.0}
    driver.finish()
    assert driver.engine.ran_s() == {}


def test_progress_is_told_at_the_first_step_and_then_at_most_once_an_interval(pool: ModelPool) -> None:
    clock = HandClock()
    driver = Driver(pool, clock=clock)
    driver.submit("job", ask(steps=10))
    for _ in range(10):
        driver.step()
        clock.now += 0.1  # the interval is 0.25
    assert [e.step for e in driver.reported(Progressed)] == [1, 4, 7, 10][: len(driver.reported(Progressed))]
    assert 2 <= len(driver.reported(Progressed)) <= 4


def test_a_request_of_one_step_tells_its_progress_too(pool: ModelPool) -> None:
    driver = Driver(pool)
    driver.submit("job", ask(steps=1))
    driver.finish()
    assert [(e.step, e.steps) for e in driver.reported(Progressed)] == [(1, 1)]


def test_the_engines_thread_serves_requests_from_other_threads_until_it_is_stopped(tiny_store: ModelStore) -> None:
    pool = ModelPool(tiny_store, load_float32)
    driver = Driver(pool)
    stop = threading.Event()
    threads = [threading.Thread(target=work, args=(stop,)) for work in (pool.run, driver.engine.run)]
    for thread in threads:
        thread.start()
    try:
        for number in range(6):
            driver.submit(str(number), ask(seed=number, steps=2 + number, batch=2))
        ended: set[str] = set()
        while len(ended) < 6:
            event = driver.engine.outbox.get(timeout=60)
            assert not isinstance(event, Failed), event
            if isinstance(event, Succeeded):
                ended.add(event.job_id)
    finally:
        stop.set()
        pool.wake()
        for thread in threads:
            thread.join(timeout=60)
    assert not any(thread.is_alive() for thread in threads)
    assert driver.engine.counters().requests_succeeded == 6


def test_an_idle_engine_says_that_it_is_alive(pool: ModelPool) -> None:
    clock = HandClock()
    driver = Driver(pool, clock=clock)
    clock.now += 50
    assert driver.engine.step() is False
    assert driver.engine.last_step_at() == clock.now


def test_labels_reach_the_picture(pool: ModelPool) -> None:
    drawn = {draw(pool, ask(class_label=label))[0].tobytes() for label in (*range(len(LABELS)), None)}
    assert len(drawn) == len(LABELS) + 1

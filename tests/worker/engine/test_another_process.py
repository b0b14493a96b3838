"""A request that was interrupted ends on its pixels in another process too, taken up in the middle or begun anew."""

import base64
import json
import subprocess
import sys
from pathlib import Path

from tests.worker.engine.another_process import hashes
from tests.worker.engine.harness import Driver, ask, draw
from worker.contract import SamplerName, SamplingRequest
from worker.engine.engine import Engine
from worker.engine.messages import Saved, SavedChain, Succeeded
from worker.models.pool import ModelPool
from worker.queue.saved_chains import pack
from worker.store.model_store import ModelStore

REPOSITORY = Path(__file__).resolve().parents[3]

STEPS = 9
# Noise in every step, memory of the last step, and guidance: all that a state must carry on.
REQUESTS = [
    ask(seed=2**53 - 3, steps=STEPS, batch=3, sampler=SamplerName.DDPM, class_label=2),
    ask(seed=11, steps=STEPS, batch=2, sampler=SamplerName.DPMPP_2M, class_label=1),
    ask(seed=2**32, steps=STEPS, batch=2, sampler=SamplerName.DDIM, eta=0.7, class_label=3, guidance_scale=3.5),
]


def left_in_the_middle(pool: ModelPool, request: SamplingRequest) -> SavedChain:
    """The last state that an engine reported of a request, some of its images further than others."""
    driver = Driver(pool, max_batch=3)
    driver.engine = Engine(pool, 3, clock=driver.clock, save_interval_s=0.0)
    driver.submit("a", request)
    while True:
        assert driver.step()
        if (
            driver.reported(Saved)
            and sum(image.step for image in driver.reported(Saved)[-1].chain.images) >= 4 * request.batch
        ):
            assert not driver.reported(Succeeded)
            return driver.reported(Saved)[-1].chain


def test_an_interrupted_request_draws_the_same_pixels_in_another_process(
    pool: ModelPool, tiny_store: ModelStore
) -> None:
    states = [left_in_the_middle(pool, request) for request in REQUESTS]
    never_left = [hashes(draw(pool, request)) for request in REQUESTS]
    asked = [
        {"request": request.model_dump(mode="json"), "state": None if state is None else as_text(state, request)}
        for request, state in [*zip(REQUESTS, states, strict=True), *((request, None) for request in REQUESTS)]
    ]
    answered = subprocess.run(
        [sys.executable, "-m", "tests.worker.engine.another_process"],
        cwd=REPOSITORY,
        input=json.dumps({"store": str(tiny_store.root), "max_batch": 5, "requests": asked}),
        stdout=subprocess.PIPE,
        text=True,
        check=True,
        timeout=120,
    )
    answers = json.loads(answered.stdout)
    taken_up, begun_anew = answers[: len(REQUESTS)], answers[len(REQUESTS) :]
    assert [answer["hashes"] for answer in taken_up] == never_left
    assert [answer["hashes"] for answer in begun_anew] == never_left
    whole = [request.batch * STEPS for request in REQUESTS]
    behind = [sum(image.step for image in state.images) for state in states]
    assert [answer["image_steps"] for answer in taken_up] == [all_ - b for all_, b in zip(whole, behind, strict=True)]
    assert [answer["image_steps"] for answer in begun_anew] == whole


def as_text(state: SavedChain, request: SamplingRequest) -> str:
    return base64.b64encode(pack(state, request)).decode()

"""Clients that want their images whatever dies: they post with a key until the job is accepted, and may cancel it."""

import random
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from enum import Enum

import httpx

from tests.faults.bodies import Drawn, body_of
from tests.service.event_source import events_of, follow
from tests.worker.queue.fake_engine import FAILS, FAILS_RETRYABLY, KILLS_ITS_PROCESS, MODEL, PROMPTED

GIVE_UP_S = 120.0
FOLLOWED = 0.3
"""Share of the plain orders whose client follows the job to its end."""

ENDS = ("succeeded", "failed", "canceled")


class Kind(Enum):
    """What a client does with its job, or the job with its worker."""

    PLAIN = "plain"
    POSTED_TWICE = "posted twice at once"
    CANCELED = "canceled"
    FAILS = "fails"
    FAILS_FOR_NOW = "fails, may be tried again"
    POISON = "kills its worker"


FAKES = (Drawn(MODEL, 8, "L"), Drawn(PROMPTED, 8, "L", by_prompt=True))
"""The fake engine's models."""

_SEEDS = {Kind.FAILS: FAILS, Kind.FAILS_FOR_NOW: FAILS_RETRYABLY, Kind.POISON: KILLS_ITS_PROCESS}


@dataclass
class Order:
    """One job as its client knows it."""

    key: str
    kind: Kind
    body: dict[str, object]
    job_ids: list[str] = field(default_factory=list)
    """From every answer that accepted it: they must all be the same."""
    attempts: int = 0
    events: list[str] = field(default_factory=list)
    """The ids of all events that its client received, over however many streams; empty when it did not ask."""


def orders(
    rng: random.Random,
    count: int,
    poisons: int,
    *,
    most_steps: int = 200,
    only_plain: bool = False,
    models: Sequence[Drawn] = FAKES,
) -> list[Order]:
    """A mixture in which every kind occurs; that many more poison jobs are spread over the whole."""
    kinds = [Kind.PLAIN] * 78 + [Kind.POSTED_TWICE] * 8 + [Kind.CANCELED] * 9 + [Kind.FAILS] * 3 + [Kind.FAILS_FOR_NOW]
    chosen = dict(enumerate(rng.sample(list(Kind), len(Kind)))) | {
        count * (number + 1) // (poisons + 1): Kind.POISON for number in range(poisons)
    }
    run = f"{rng.getrandbits(64):x}"
    made = []
    for number in range(count):
        kind = Kind.PLAIN if only_plain else chosen.get(number) or rng.choice(kinds)
        seed = _SEEDS.get(kind, 1000 + number * 10)
        steps = rng.randint(200, 400) if kind is Kind.CANCELED else rng.randint(1, most_steps)
        made.append(Order(f"{run}-{number}", kind, body_of(rng, models, seed, steps)))
    return made


class Clients:
    """Threads that place the orders at a steady rate, each order at whichever gateway answers."""

    def __init__(self, urls: Sequence[str], orders: Sequence[Order], over_s: float, seed: int) -> None:
        self._urls = urls
        self._orders = orders
        self._gap_s = over_s / max(1, len(orders))
        self._rng = random.Random(seed)
        self.hurry = threading.Event()
        """Set: place the rest at once."""

    def place_all(self) -> None:
        with ThreadPoolExecutor(10) as pool:
            running = []
            for order in self._orders:
                running.append(pool.submit(self._place, order, random.Random(self._rng.random())))
                self.hurry.wait(self._gap_s)
            for future in running:
                future.result()

    def _place(self, order: Order, rng: random.Random) -> None:
        with httpx.Client(timeout=10, trust_env=False) as client:
            if order.kind is Kind.POSTED_TWICE:
                with ThreadPoolExecutor(2) as pair:
                    list(pair.map(lambda _: self._post(client, order, rng), range(2)))
            else:
                self._post(client, order, rng)
            if order.kind is Kind.CANCELED:
                time.sleep(rng.uniform(0, 0.6))
                path = f"/jobs/{order.job_ids[0]}"
                self._until(rng, order, lambda url: client.delete(url + path), (200,))
            if order.kind is Kind.PLAIN and rng.random() < FOLLOWED:
                self._follow(client, order, rng)

    def _follow(self, client: httpx.Client, order: Order, rng: random.Random) -> None:
        """As a browser does: connects again, to any gateway, with the id of the last event."""
        deadline, last = time.monotonic() + GIVE_UP_S, None
        while not (order.events and order.events[-1] in ENDS):
            assert time.monotonic() < deadline, f"{order.job_ids[0]}: no end was reported within {GIVE_UP_S:g} s"
            try:
                with follow(client, rng.choice(self._urls) + events_of(order.job_ids[0]), last) as source:
                    for event in source.events:
                        last = event.id
                        if event.name != "error":
                            order.events.append(event.id)
            except httpx.TransportError:
                pass  # its gateway was killed under it
            except httpx.HTTPStatusError as error:
                if error.response.status_code != 503:
                    raise
            time.sleep(rng.uniform(0.05, 0.3))

    def _post(self, client: httpx.Client, order: Order, rng: random.Random) -> None:
        headers = {"Idempotency-Key": order.key}
        answer = self._until(
            rng, order, lambda url: client.post(url + "/generate", json=order.body, headers=headers), (200, 202)
        )
        order.job_ids.append(str(answer.json()["id"]))

    def _until(
        self, rng: random.Random, order: Order, send: Callable[[str], httpx.Response], good: Sequence[int]
    ) -> httpx.Response:
        deadline = time.monotonic() + GIVE_UP_S
        while True:
            order.attempts += 1
            refusal = ""
            try:
                answer = send(rng.choice(self._urls))
                if answer.status_code in good:
                    return answer
                refusal = f"{answer.status_code} {answer.text}"
                # 503 is the promise while Redis is away; anything else is a defect.
                assert answer.status_code == 503, refusal
            except httpx.TransportError as error:
                refusal = repr(error)  # its gateway was killed under it
            assert time.monotonic() < deadline, f"order {order.key} was not taken within {GIVE_UP_S:g} s: {refusal}"
            time.sleep(rng.uniform(0.05, 0.3))

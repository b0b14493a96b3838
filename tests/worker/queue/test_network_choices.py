"""A choice of one worker is every worker's, and outlives them."""

import errno
from concurrent.futures import ThreadPoolExecutor

import pytest
import redis

from tests.conftest import ValkeyHandle
from worker.queue.network_choices import RedisChoices


def test_the_first_choice_holds_for_all_workers(valkey: ValkeyHandle) -> None:
    one, other = RedisChoices(valkey.client), RedisChoices(valkey.client)
    assert one.get("dtype of a") is None
    assert one.settle("dtype of a", "bfloat16") == "bfloat16"
    assert other.settle("dtype of a", "float32") == "bfloat16"
    assert other.get("dtype of a") == "bfloat16"
    assert other.get("dtype of b") is None


def test_workers_that_choose_at_a_time_agree(valkey: ValkeyHandle) -> None:
    proposals = [f"choice {number}" for number in range(16)]
    choices = RedisChoices(valkey.client)
    with ThreadPoolExecutor(8) as threads:
        settled = set(threads.map(lambda proposal: choices.settle("dtype of a", proposal), proposals))
    assert len(settled) == 1
    assert settled == {choices.get("dtype of a")}


def test_a_choice_never_expires(valkey: ValkeyHandle) -> None:
    RedisChoices(valkey.client).settle("dtype of a", "bfloat16")
    (key,) = valkey.client.keys()
    assert valkey.client.ttl(key) == -1


def test_a_redis_that_is_away_is_a_reason_that_may_pass() -> None:
    choices = RedisChoices(redis.Redis(host="127.0.0.1", port=1))
    with pytest.raises(OSError, match="can't read what other workers chose") as caught:
        choices.get("dtype of a")
    assert caught.value.errno == errno.EAGAIN
    with pytest.raises(OSError, match="can't share a choice with other workers") as caught:
        choices.settle("dtype of a", "float32")
    assert caught.value.errno == errno.EAGAIN

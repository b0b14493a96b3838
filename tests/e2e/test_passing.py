"""A short request does not wait for the long ones that came before it, though they fill the batch and the line."""

import pytest

from tests.bundled_digits import digits_store
from tests.conftest import ValkeyHandle
from tests.e2e.conftest import running_stack

pytestmark = pytest.mark.slow


def test_a_short_request_passes_a_line_of_long_ones(
    valkey_session: ValkeyHandle, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Six of them are more than fill the batch and what a worker claims ahead of it."""
    folder = tmp_path_factory.mktemp("passing")
    with running_stack(valkey_session, folder, store=digits_store(folder), max_batch=4) as stack:
        stack.finished(stack.generate(seed=1, steps=20, batch=1))  # the worker's speed is known
        long_ones = [stack.generate(seed=100 * number, steps=1000, batch=4) for number in range(6)]
        short = stack.finished(stack.generate(seed=7, steps=5, batch=2))
        jobs = [stack.http.get(f"/jobs/{job_id}").json() for job_id in long_ones]
        assert [job["finished_at"] for job in jobs] == [None] * len(jobs)
        assert jobs[0]["progress"]["step"] < 900
        for job_id in long_ones:
            stack.http.delete(f"/jobs/{job_id}").raise_for_status()
        assert short["images"]

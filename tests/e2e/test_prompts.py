"""Prompts through the whole product, and through the death of a worker in the middle of a chain."""

from pathlib import Path

import pytest

from tests.conftest import ValkeyHandle
from tests.e2e.conftest import running_stack
from tests.worker.text_pipeline import TEXT, publish_text
from tests.worker.tiny_models import TINY, publish_tiny
from worker.store import ModelStore

pytestmark = pytest.mark.slow

CAT = {"model": TEXT, "prompt": "a cat", "negative_prompt": "dog", "seed": 7, "steps": 100, "batch": 2}


def test_a_prompt_is_drawn_and_again_with_the_same_pixels_after_kill_9(
    valkey_session: ValkeyHandle, tmp_path: Path
) -> None:
    store = ModelStore(tmp_path / "store")
    publish_text(store)
    publish_tiny(store)
    with running_stack(valkey_session, tmp_path, store=store.root) as stack:
        takes = {model["name"]: model["takes"] for model in stack.http.get("/models").json()["models"]}
        assert takes == {TEXT: "prompt", TINY: "class_label"}
        alone = stack.hashes(stack.generate(**CAT))
        others = [stack.generate(**{**CAT, "prompt": text, "steps": 20}) for text in ("a dog", "a cat " * 20)]
        others.append(stack.generate(model=TINY, seed=1, steps=20, batch=2, class_label=1))
        again = stack.generate(**CAT)
        stack.wait_for_step(again, 10)
        stack.replace_worker()
        assert stack.hashes(again) == alone
        assert len(set(alone)) == 2
        dog, cut, _ = (stack.finished(job_id) for job_id in others)
        assert dog["warnings"] == []
        assert cut["warnings"] == ["prompt: text reads 14 tokens of it, lost: " + ("a cat " * 13).strip()]
        special = stack.generate(**{**CAT, "prompt": "a <|endoftext|>"})
        job = stack.ended(special)
        assert (job["status"], job["error"]["code"]) == ("failed", "bad_job")
        assert "special token <|endoftext|>" in job["error"]["detail"]

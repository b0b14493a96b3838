"""What the page copies is run as it is and draws the same request again."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import expect

from tests.service.fake_worker import EMOJI, FakeWorker, request_of
from tests.service.page.conftest import Visit
from tests.service.page.test_page import take
from worker.contract import LoraInfo, LoraUse

ROOT = Path(__file__).resolve().parents[3]
PROMPT = """it's a "purple" rocket; $HOME `ls` \\ 火箭"""


@pytest.mark.parametrize("language", ["curl", "Python", "JavaScript"])
def test_a_snippet_draws_the_image_again(
    visit: Callable[..., Visit], worker: FakeWorker, tmp_path: Path, language: str
) -> None:
    worker.announce(models=(EMOJI.model_copy(update={"loras": [LoraInfo(name="face", sha256="a" * 64)]}),))
    opened = visit()
    page = opened.page
    page.get_by_label("Model", exact=True).select_option("emoji")
    page.get_by_label("Add a LoRA").select_option("face")
    page.get_by_label("Scale of face").fill("0.5")
    page.get_by_label("Prompt", exact=True).fill(PROMPT)
    opened.draw()
    worker.succeed(drawn := take(worker))
    opened.jobs.first.get_by_role("button").filter(has=page.get_by_role("img")).nth(1).click()
    page.get_by_role("tab", name=language).click()
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    expect(page.locator("#toast")).to_have_text("Copied")
    code = page.evaluate("navigator.clipboard.readText()")
    with worker.serving():
        match language:
            case "curl":
                subprocess.run(["bash", "-c", code + " --silent --fail"], check=True, timeout=60)
            case "Python":
                environment = os.environ | {"PYTHONPATH": str(ROOT)}
                subprocess.run([sys.executable, "-c", code], check=True, timeout=60, cwd=tmp_path, env=environment)
                assert [path.stat().st_size > 0 for path in tmp_path.iterdir()] == [True]
            case "JavaScript":
                assert page.evaluate(f"(async () => {{ {code} return blobs.length }})()") == 1
    first, again = request_of(drawn), worker.drawn[-1]
    assert len(worker.drawn) == 2
    assert again.condition == first.condition
    assert (again.seed, again.batch, again.steps) == (first.seed + 1, 1, first.steps)
    assert (again.model, again.guidance, again.sampler) == (first.model, first.guidance, first.sampler)
    assert again.loras == first.loras == (LoraUse(name="face", scale=0.5, sha256="a" * 64),)

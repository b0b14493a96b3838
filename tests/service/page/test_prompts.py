"""A model of prompts as the page opens with it: what to try, and what fields stand for that are left empty."""

from collections.abc import Callable

import pytest
from playwright.sync_api import expect

from tests.service.fake_worker import CLOUDS, DIGITS, EMOJI, FakeWorker, request_of
from tests.service.page.conftest import Visit
from tests.service.page.test_accessibility import findings
from tests.service.page.test_page import take
from worker.contract import PROMPT_GUIDANCE, SamplerName, TextCondition

Open = Callable[..., Visit]

EXAMPLES = ["blue apple", "purple rocket on a yellow background", "cat face"]


@pytest.fixture
def worker(worker: FakeWorker) -> FakeWorker:
    """Of two versions the current one was published with settings of its own."""
    (current,) = EMOJI.versions
    older = current.model_copy(update={"version": "000000001-3f2a9c1b", "step": 1})
    own = current.model_copy(update={"sampler": SamplerName.DDPM, "steps": 25, "guidance_scale": 4.0})
    emoji = EMOJI.model_copy(update={"versions": [older, own], "example_prompts": EXAMPLES})
    worker.announce((DIGITS, CLOUDS, emoji), default_model="emoji")
    return worker


def test_the_first_visit_opens_with_the_default_model_and_an_example_of_it(visit: Open, worker: FakeWorker) -> None:
    page = (opened := visit()).page
    prompt = page.get_by_label("Prompt", exact=True)
    expect(page.get_by_label("Model", exact=True)).to_have_value("emoji")
    expect(prompt).to_have_value(EXAMPLES[0])
    examples = page.get_by_role("group", name="Examples").get_by_role("button")
    expect(examples).to_have_text(EXAMPLES)
    assert findings(page) == []
    examples.nth(1).click()
    expect(prompt).to_have_value(EXAMPLES[1])
    opened.draw()
    asked = request_of(take(worker))
    assert (asked.model, asked.condition) == ("emoji", TextCondition(prompt=EXAMPLES[1]))
    prompt.fill("")
    page.reload()
    expect(page.get_by_role("button", name="Draw 4 images")).to_be_enabled()
    expect(examples).to_have_text(EXAMPLES)
    expect(prompt).to_have_value("")  # only who was never here finds something in it
    page.get_by_label("Model", exact=True).select_option("clouds")
    expect(page.get_by_role("group", name="Examples")).to_be_hidden()


def test_what_is_left_empty_is_as_the_chosen_version_was_published(visit: Open, worker: FakeWorker) -> None:
    page = (opened := visit()).page
    steps, guidance = page.get_by_label("Steps", exact=True), page.get_by_label("Guidance", exact=True)
    slide = page.get_by_label("Steps, coarse")
    page.locator("#finer summary").click()
    first = page.get_by_label("Sampler", exact=True).locator("option").first
    expect(first).to_have_text("DDPM (default)")
    expect(page.get_by_label("Noise of each step (eta)")).to_be_hidden()
    expect(steps).to_have_attribute("placeholder", "25")
    expect(guidance).to_have_attribute("placeholder", "4")
    expect(slide).to_have_value("25")
    opened.draw()
    asked = request_of(take(worker))
    assert (asked.sampler, asked.steps, asked.guidance.scale) == (SamplerName.DDPM, 25, 4.0)
    page.get_by_label("Version", exact=True).select_option("000000001-3f2a9c1b")
    expect(first).to_have_text("DDIM (default)")
    expect(steps).to_have_attribute("placeholder", "50")
    expect(guidance).to_have_attribute("placeholder", "3")
    expect(slide).to_have_value("50")
    expect(page.get_by_label("Noise of each step (eta)")).to_be_visible()
    steps.fill("7")
    opened.draw()
    asked = request_of(take(worker))
    assert (asked.sampler, asked.steps, asked.guidance.scale) == (SamplerName.DDIM, 7, PROMPT_GUIDANCE)

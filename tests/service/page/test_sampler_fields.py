"""Fields that some samplers, or guidance alone, have a use for: offered then, and used again."""

from collections.abc import Callable

from playwright.sync_api import expect

from service.sampler_rules import DPM_SOLVERS
from tests.service.fake_worker import DIGITS, REFINED, FakeWorker, request_of
from tests.service.page.conftest import Visit
from tests.service.page.test_accessibility import findings
from tests.service.page.test_page import take
from worker.contract import KARRAS_SAMPLERS, SamplerName, TextCondition

Open = Callable[..., Visit]


def test_noise_levels_and_rescale_are_offered_where_they_have_an_effect(visit: Open) -> None:
    page = (opened := visit()).page
    page.locator("#finer summary").click()
    for sampler in SamplerName:
        page.get_by_label("Sampler", exact=True).select_option(sampler.value)
        assert page.get_by_label("Noise levels").is_visible() == (sampler in KARRAS_SAMPLERS), sampler
    rescale = page.get_by_label("Guidance rescale")
    interval = page.get_by_label("Guided from t/T")
    guidance = page.get_by_label("Guidance", exact=True)
    guidance.fill("2.5")
    expect(rescale).to_be_hidden()  # of no label there is nothing to be guided by
    opened.choose("two")
    expect(rescale).to_be_visible()
    expect(interval).to_be_visible()
    guidance.fill("1")
    expect(rescale).to_be_hidden()
    expect(interval).to_be_hidden()
    page.get_by_label("Model", exact=True).select_option("emoji")
    guidance.fill("")
    page.get_by_label("Prompt", exact=True).fill("a rocket")
    expect(rescale).to_be_visible()  # guided by default


def test_timesteps_are_offered_where_the_gateway_takes_them(visit: Open) -> None:
    page = visit().page
    page.locator("#finer summary").click()
    timesteps, levels = page.get_by_label("Timesteps"), page.get_by_label("Noise levels")
    for sampler in SamplerName:
        page.get_by_label("Sampler", exact=True).select_option(sampler.value)
        expect(timesteps).to_be_visible(visible=sampler is not SamplerName.LCM)
        if sampler in KARRAS_SAMPLERS:
            levels.select_option("Karras'")
            expect(timesteps).to_be_visible(visible=sampler not in DPM_SOLVERS)
            levels.select_option("")


def test_each_line_of_the_prompt_may_be_an_image(visit: Open, worker: FakeWorker) -> None:
    page = (opened := visit()).page
    page.get_by_label("Model", exact=True).select_option("emoji")
    page.get_by_label("Prompt", exact=True).fill("a rocket\n\na cat")
    page.get_by_label("Each line is an image of its own").check()
    expect(page.get_by_label("Images", exact=True)).to_have_value("2")
    expect(page.get_by_role("button", name="More images")).to_be_disabled()
    page.locator("#finer summary").click()
    page.get_by_label("Text encoder's last layers to skip").fill("2")
    assert findings(page) == []
    opened.draw()
    worker.succeed(drawn := take(worker))
    first = request_of(drawn)
    assert (first.condition, first.batch) == (TextCondition(prompt="", prompts=("a rocket", "a cat"), clip_skip=2), 2)
    opened.jobs.first.get_by_role("button").filter(has=page.get_by_role("img", name="a cat")).click()
    page.get_by_role("button", name="Reuse settings").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a cat")
    expect(page.get_by_label("Each line is an image of its own")).not_to_be_checked()
    opened.draw()
    worker.succeed(again := take(worker))
    assert (request_of(again).condition, request_of(again).batch) == (TextCondition(prompt="a cat", clip_skip=2), 1)
    opened.jobs.nth(1).get_by_role("button", name="Reuse").click()
    expect(page.get_by_label("Prompt", exact=True)).to_have_value("a rocket\na cat")
    expect(page.get_by_label("Each line is an image of its own")).to_be_checked()


def test_noise_levels_and_rescale_are_used_again(visit: Open, worker: FakeWorker) -> None:
    page = (opened := visit()).page
    opened.choose("one")
    page.locator("#finer summary").click()
    page.get_by_label("Sampler", exact=True).select_option("euler")
    page.get_by_label("Noise levels").select_option("Karras'")
    page.get_by_label("Guidance", exact=True).fill("2.5")
    page.get_by_label("Guidance rescale").fill("0.7")
    page.get_by_label("to t/T", exact=True).fill("0.8")
    page.get_by_label("Fast").check()
    opened.draw()
    worker.succeed(drawn := take(worker))
    first = request_of(drawn)
    assert (first.karras, first.guidance.rescale, first.guidance.interval) == (True, 0.7, (0.0, 0.8))
    assert first.fast
    page.get_by_label("Fast").uncheck()
    for label, value in (("Noise levels", ""), ("Sampler", "ddim")):
        page.get_by_label(label, exact=True).select_option(value)
    page.get_by_label("Guidance", exact=True).fill("1")
    opened.jobs.first.get_by_role("button").filter(has=page.get_by_role("img")).nth(2).click()
    expect(page.get_by_role("dialog")).to_contain_text("euler, Karras' noise levels")
    expect(page.get_by_role("dialog")).to_contain_text("2.5, rescaled by 0.7, for t/T from 0 to 0.8")
    page.get_by_role("button", name="Reuse settings").click()
    opened.draw()
    again = request_of(take(worker))
    assert again == first.model_copy(update={"seed": first.seed + 2, "batch": 1, "version": again.version})

    page.get_by_label("Noise levels").select_option("the model's own")
    opened.draw()
    worker.succeed(take(worker))
    page.get_by_label("Noise levels").select_option("")
    opened.jobs.first.get_by_role("button", name="Reuse").click()
    expect(page.get_by_label("Noise levels")).to_have_value("false")


def test_a_refiner_is_offered_where_the_version_has_one(visit: Open, worker: FakeWorker) -> None:
    worker.announce(models=(DIGITS, REFINED))
    page = (opened := visit()).page
    page.locator("#finer summary").click()
    share = page.get_by_label("Refined after this share of the steps")
    expect(share).to_be_hidden()
    page.get_by_label("Model", exact=True).select_option("refined")
    expect(share).to_be_visible()
    page.get_by_label("Version", exact=True).select_option(REFINED.versions[0].version)
    expect(share).to_be_hidden()
    page.get_by_label("Version", exact=True).select_option("")
    page.get_by_label("Sampler", exact=True).select_option("plms")
    expect(share).to_be_hidden()
    page.get_by_label("Sampler", exact=True).select_option("")
    page.get_by_label("Prompt", exact=True).fill("a rocket")
    share.fill("0.7")
    opened.draw()
    worker.succeed(drawn := take(worker))
    assert request_of(drawn).refiner_start == 0.7
    share.fill("")
    opened.jobs.first.get_by_role("button").filter(has=page.get_by_role("img")).first.click()
    expect(page.get_by_role("dialog")).to_contain_text("refined from 0.7")
    page.get_by_role("button", name="Reuse settings").click()
    expect(share).to_have_value("0.7")

"""Fields that some samplers, or guidance alone, have a use for: offered then, and used again."""

from collections.abc import Callable

from playwright.sync_api import expect

from tests.service.fake_worker import FakeWorker, request_of
from tests.service.page.conftest import Visit
from tests.service.page.test_page import take
from worker.contract import KARRAS_SAMPLERS, SamplerName

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


def test_noise_levels_and_rescale_are_used_again(visit: Open, worker: FakeWorker) -> None:
    page = (opened := visit()).page
    opened.choose("one")
    page.locator("#finer summary").click()
    page.get_by_label("Sampler", exact=True).select_option("euler")
    page.get_by_label("Noise levels").select_option("Karras'")
    page.get_by_label("Guidance", exact=True).fill("2.5")
    page.get_by_label("Guidance rescale").fill("0.7")
    page.get_by_label("to t/T", exact=True).fill("0.8")
    opened.draw()
    worker.succeed(drawn := take(worker))
    first = request_of(drawn)
    assert (first.karras, first.guidance.rescale, first.guidance.interval) == (True, 0.7, (0.0, 0.8))
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

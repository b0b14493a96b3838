"""What the page promises to whoever draws with it: in a real browser, with a mouse, a keyboard or neither."""

import json
from collections.abc import Callable

import pytest
from playwright.sync_api import Browser, expect
from rq.job import Job

from service.access.api_key import Scope, new_key
from service.settings import Settings
from tests.conftest import ValkeyHandle
from tests.service.fake_worker import DIGITS, OUT_OF_MEMORY, FakeWorker, request_of
from tests.service.page.conftest import DRAW, Visit
from tests.service.servers import RunningGateway
from tests.service.test_jobs import poll
from worker.contract.keys import preview_asked_key

Open = Callable[..., Visit]

LOADED = "img => img.complete && img.naturalWidth"


def take(worker: FakeWorker) -> Job:
    poll(worker.queue_length)
    return worker.take()


def test_an_image_is_submitted_watched_and_drawn(visit: Open, worker: FakeWorker, valkey: ValkeyHandle) -> None:
    page = (opened := visit()).page
    opened.choose("two")
    page.get_by_label("Seed", exact=True).fill("41")
    page.get_by_label("Images", exact=True).fill("2")
    expect(page.get_by_role("button", name="Draw 2 images")).to_be_visible()
    opened.draw()
    job = take(worker)
    asked = request_of(job)
    assert (asked.seed, asked.steps, asked.batch, asked.condition.kind) == (41, 50, 2, "label")

    card = opened.jobs.first
    worker.report(job, 12)
    expect(card).to_contain_text("12 / 50")
    expect(card.get_by_role("progressbar")).to_have_attribute("value", "12")
    poll(lambda: valkey.client.exists(preview_asked_key(job.id)))
    worker.preview(job, 12)
    preview = card.get_by_alt_text("Image 1 on its way")
    expect(preview).to_be_visible()
    assert str(preview.get_attribute("src")).startswith("data:image/webp")
    worker.succeed(job)
    images = card.get_by_role("img")
    expect(images).to_have_count(2)
    expect(images.nth(1)).to_have_accessible_name("“two”, drawn by digits with seed 42")
    poll(lambda: images.nth(1).evaluate(LOADED) == 8)
    expect(page.locator("#toast")).to_have_text("Done: two")


def test_a_waiting_job_shows_its_place_and_can_be_canceled(visit: Open, worker: FakeWorker) -> None:
    worker.announce(row_step_s={"digits": 0.02})
    opened = visit()
    for _ in range(2):
        opened.draw()
        expect(opened.page.locator("#draw")).not_to_have_attribute("aria-busy", "true")
    expect(opened.jobs).to_have_count(2)
    expect(opened.jobs.first).to_contain_text("1 ahead · about 4 s")
    opened.jobs.first.get_by_role("button", name="Cancel").click()
    expect(opened.jobs.first).to_contain_text("canceled")
    expect(opened.jobs.nth(1)).to_contain_text("next")
    assert worker.queue_length() == 1


def test_what_the_gateway_refuses_is_said_at_the_field(visit: Open, worker: FakeWorker) -> None:
    opened = visit()
    page = opened.page
    page.get_by_label("Steps", exact=True).fill("5000")
    opened.draw()
    steps = page.get_by_label("Steps", exact=True)
    expect(steps).to_be_focused()
    expect(steps).to_have_attribute("aria-invalid", "true")
    expect(steps).to_have_accessible_description("Input should be less than or equal to 1000")
    steps.fill("20")
    expect(steps).not_to_have_attribute("aria-invalid", "true")
    page.locator("#finer summary").click()
    page.get_by_label("Noise of each step (eta)").fill("3")
    page.locator("#finer summary").click()
    opened.draw()
    expect(page.get_by_label("Noise of each step (eta)")).to_be_focused()
    page.get_by_label("Noise of each step (eta)").fill("")
    opened.draw()
    expect(opened.jobs).to_have_count(1)
    assert worker.queue_length() == 1


def test_a_job_that_fails_says_why_in_its_place(visit: Open, worker: FakeWorker) -> None:
    opened = visit()
    opened.draw()
    worker.fail(take(worker), OUT_OF_MEMORY.model_dump_json())
    expect(opened.jobs.first.get_by_role("alert")).to_have_text(f"out of memory: {OUT_OF_MEMORY.detail}")


def test_a_reload_finds_everything_again_but_what_the_gateway_has_forgotten(
    visit: Open, worker: FakeWorker, valkey: ValkeyHandle
) -> None:
    opened = visit()
    jobs = []
    for label in ("zero", "one", "two"):
        opened.choose(label)
        opened.draw()
        jobs.append(take(worker))
    for job in jobs[:2]:
        worker.succeed(job)
    expect(opened.page.locator(".job[data-status=succeeded]")).to_have_count(2)
    valkey.client.delete(f"rq:job:{jobs[0].id}")
    opened.page.reload()
    expect(opened.jobs).to_have_count(2)
    expect(opened.jobs.first.get_by_role("heading")).to_have_text("two")
    expect(opened.page.get_by_role("radio", name="two")).to_be_checked()
    worker.report(jobs[2], 7)
    expect(opened.jobs.first).to_contain_text("7 / 50")
    worker.succeed(jobs[2])
    expect(opened.jobs.first.get_by_role("img")).to_have_count(4)


def test_a_gateway_that_goes_and_comes_back_loses_nothing(
    visit: Open, worker: FakeWorker, valkey: ValkeyHandle, gateway: RunningGateway
) -> None:
    opened = visit()
    page = opened.page
    opened.draw()
    job = take(worker)
    worker.report(job, 3)
    expect(opened.jobs.first).to_contain_text("3 / 50")
    gateway.__exit__()
    expect(page.get_by_role("alert").filter(has_text="does not answer").first).to_be_visible()
    expect(page.locator("#status")).to_have_text("Reconnecting")
    opened.draw()
    expect(page.locator("#problem")).to_contain_text("Nothing was drawn")
    worker.succeed(job)
    with RunningGateway(Settings(redis_url=valkey.url), port=int(gateway.url.rpartition(":")[2])):
        expect(page.locator("#status")).to_have_text("Ready")
        expect(page.locator("#away")).to_be_hidden()
        expect(opened.jobs.first.get_by_role("img")).to_have_count(4)
        opened.draw()
        expect(opened.jobs).to_have_count(2)
        assert worker.queue_length() == 1
        page.context.close()


def test_the_keyboard_is_enough(visit: Open, worker: FakeWorker) -> None:
    opened = visit()
    page = opened.page
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to your images")).to_be_focused()
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.name") == "class_label":
            break
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    for label in ("Model", "Version"):
        page.keyboard.press("Tab")
        expect(page.get_by_label(label, exact=True)).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Begin at a picture")).to_be_focused()
    page.keyboard.press("Tab")
    expect(page.get_by_label("Steps", exact=True)).to_be_focused()
    page.keyboard.type("9")
    page.keyboard.press("Control+Enter")
    job = take(worker)
    assert json.loads(request_of(job).model_dump_json())["condition"]["label"] == 1
    worker.succeed(job)
    expect(opened.jobs.first.get_by_role("img")).to_have_count(4)
    for _ in range(40):
        page.keyboard.press("Tab")
        if "tile" in page.evaluate("document.activeElement.className"):
            break
    page.keyboard.press("Enter")
    dialog = page.get_by_role("dialog", name="one")
    expect(dialog).to_be_visible()
    seed = request_of(job).seed
    expect(dialog.get_by_role("img")).to_have_accessible_name(f"“one”, drawn by digits with seed {seed}")
    page.keyboard.press("ArrowRight")
    expect(dialog.get_by_role("img")).to_have_accessible_name(f"“one”, drawn by digits with seed {seed + 1}")
    page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()
    assert "tile" in page.evaluate("document.activeElement.className"), "the focus is back where it was"


def test_settings_of_an_image_are_used_again(visit: Open, worker: FakeWorker) -> None:
    opened = visit()
    page = opened.page
    opened.choose("one")
    page.locator("#finer summary").click()
    page.get_by_label("Sampler", exact=True).select_option("ddpm")
    page.get_by_label("Guidance", exact=True).fill("2.5")
    opened.draw()
    worker.succeed(drawn := take(worker))
    opened.choose("any")
    page.get_by_label("Sampler", exact=True).select_option("")
    page.get_by_label("Steps", exact=True).fill("3")
    opened.jobs.first.get_by_role("button").filter(has=page.get_by_role("img")).nth(2).click()
    page.get_by_role("button", name="Reuse settings").click()
    opened.draw()
    again, first = request_of(take(worker)), request_of(drawn)
    assert (again.seed, again.batch) == (first.seed + 2, 1)
    for name in ("model", "steps", "sampler", "condition", "guidance", "format"):
        assert getattr(again, name) == getattr(first, name), name


def test_fields_are_those_that_the_model_takes(visit: Open) -> None:
    page = visit().page
    model = page.get_by_label("Model", exact=True)
    expect(page.get_by_role("group", name="Label")).to_be_visible()
    expect(page.get_by_label("Prompt", exact=True)).to_be_hidden()
    model.select_option("emoji")
    expect(page.get_by_label("Prompt", exact=True)).to_be_visible()
    expect(page.get_by_role("group", name="Label")).to_be_hidden()
    model.select_option("clouds")
    expect(page.get_by_label("Guidance", exact=True)).to_be_hidden()
    expect(page.get_by_label("Prompt", exact=True)).to_be_hidden()


def test_a_training_is_watched_version_by_version(visit: Open, worker: FakeWorker) -> None:
    opened = visit()
    page = opened.page
    opened.choose("two")
    page.get_by_label("Seed", exact=True).fill("7")
    page.get_by_role("button", name="Watch training").click()
    strip = page.get_by_role("list", name="The same seed, newest version first").get_by_role("listitem")
    worker.succeed(first := take(worker))
    expect(strip).to_have_count(1)
    newer = DIGITS.versions[0].model_copy(update={"version": "000024000-77777777", "step": 24000})
    worker.announce((DIGITS.model_copy(update={"version": newer.version, "versions": [*DIGITS.versions, newer]}),))
    second = take(worker)
    expect(strip).to_have_count(2)
    one, other = request_of(first), request_of(second)
    assert (one.version, other.version) == (DIGITS.version, newer.version)
    assert (one.seed, one.batch, one.condition) == (other.seed, other.batch, other.condition) == (7, 1, other.condition)
    worker.succeed(second)
    expect(strip.first.get_by_role("img")).to_have_accessible_name(
        "“two”, drawn by digits with seed 7, step 12\u202f000"
    )
    page.reload()
    expect(strip).to_have_count(2)
    assert worker.queue_length() == 0, "a version is drawn once"
    expect(opened.jobs).to_have_count(0)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_colours_follow_the_system_until_somebody_chooses(visit: Open, scheme: str) -> None:
    page = visit(scheme=scheme).page
    ground = "getComputedStyle(document.body).backgroundColor"
    before = page.evaluate(ground)
    button = page.get_by_role("button", name="Colours")
    while "light" not in str(button.get_attribute("aria-label")):
        button.click()
    page.reload()
    assert (page.evaluate(ground) == before) == (scheme == "light")


def test_a_gateway_that_wants_a_key_is_given_one(browser: Browser, worker: FakeWorker, valkey: ValkeyHandle) -> None:
    key, kept = new_key("ann", Scope.GENERATE)
    settings = Settings.model_validate({"redis_url": valkey.url, "api_keys": kept.line()})
    with RunningGateway(settings) as gateway:
        page = browser.new_page()
        page.goto(gateway.url)
        dialog = page.get_by_role("dialog", name="API key")
        dialog.get_by_label("Key", exact=True).fill(key)
        dialog.get_by_role("button", name="Use it").click()
        draw = page.get_by_role("button", name=DRAW)
        expect(draw).to_be_enabled()
        draw.click()
        worker.report(job := take(worker), 4)
        expect(page.locator("#gallery")).to_contain_text("4 / 50")
        worker.succeed(job)
        image = page.locator("#gallery").get_by_role("img").first
        poll(lambda: image.evaluate(LOADED) == 8)
        assert str(image.get_attribute("src")).startswith("blob:"), "an <img> sends no key"
        page.context.close()


def test_noise_turning_into_an_image_is_played(visit: Open, worker: FakeWorker) -> None:
    opened = visit()
    page = opened.page
    page.get_by_label("Images", exact=True).fill("20")
    page.get_by_label("Keep noise turning into the image").check()
    opened.draw()
    job = take(worker)
    assert request_of(job).frames == 19, "as many as twenty images may keep"
    worker.succeed(job)
    opened.jobs.first.get_by_role("button").filter(has=page.get_by_role("img")).nth(3).click()
    dialog = page.get_by_role("dialog")
    dialog.get_by_role("button", name="Noise to image").click()
    image = dialog.get_by_role("img")
    expect(image).to_have_attribute("src", f"/jobs/{job.id}/animation?image=3")
    poll(lambda: image.evaluate(LOADED) == 8)
    with page.expect_download() as download:
        dialog.get_by_role("link", name="All on one sheet").click()
    assert download.value.suggested_filename == f"digits-{request_of(job).seed}-sheet.png"

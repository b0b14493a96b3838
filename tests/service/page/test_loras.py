"""LoRAs in the form: offered where the model has them, several at once, each with its scale, and used again."""

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.service.fake_worker import DIGITS, EMOJI, FakeWorker, request_of
from tests.service.page.conftest import Visit
from tests.service.page.test_accessibility import findings
from tests.service.page.test_page import take
from worker.contract import MAX_LORAS, LoraInfo, LoraUse

Open = Callable[..., Visit]

FACE, STYLE, NEW_STYLE = "a" * 64, "b" * 64, "c" * 64
WITH_LORAS = EMOJI.model_copy(
    update={"loras": [LoraInfo(name="face", sha256=FACE), LoraInfo(name="style", sha256=STYLE)]}
)


def add(page: Page, name: str) -> None:
    page.get_by_label("Add a LoRA").select_option(name)


def test_loras_are_offered_where_the_model_has_them(visit: Open, worker: FakeWorker) -> None:
    worker.announce(models=(DIGITS, WITH_LORAS))
    page = (opened := visit()).page
    expect(page.get_by_role("group", name="LoRAs")).to_be_hidden()
    page.get_by_label("Model", exact=True).select_option("emoji")
    add(page, "face")
    expect(page.get_by_label("Scale of face")).to_be_focused()
    page.get_by_label("Model", exact=True).select_option("digits")
    expect(page.get_by_role("group", name="LoRAs")).to_be_hidden()
    opened.draw()
    assert request_of(take(worker)).loras == ()
    page.get_by_label("Model", exact=True).select_option("emoji")
    expect(page.get_by_label("Scale of face")).to_have_value("1")


def test_several_are_drawn_with_each_at_its_scale_and_used_again(visit: Open, worker: FakeWorker) -> None:
    worker.announce(models=(WITH_LORAS,), default_model="emoji")
    page = (opened := visit()).page
    page.get_by_label("Prompt", exact=True).fill("a rocket")
    for name in ("style", "face"):
        add(page, name)
    expect(page.get_by_label("Add a LoRA")).to_be_hidden()
    page.get_by_label("Scale of style").fill("0.8")
    page.get_by_label("Scale of face").fill("-0.5")
    assert findings(page) == []
    opened.draw()
    worker.succeed(drawn := take(worker))
    both = (LoraUse(name="face", scale=-0.5, sha256=FACE), LoraUse(name="style", scale=0.8, sha256=STYLE))
    assert request_of(drawn).loras == both

    page.reload()
    expect(page.get_by_label("Scale of style")).to_have_value("0.8")
    page.get_by_role("button", name="Remove style").click()
    expect(page.get_by_label("Add a LoRA")).to_be_focused()
    opened.draw()
    assert request_of(take(worker)).loras == both[:1]

    imported_anew = [WITH_LORAS.loras[0], LoraInfo(name="style", sha256=NEW_STYLE, earlier=[STYLE])]
    worker.announce(models=(WITH_LORAS.model_copy(update={"loras": imported_anew}),), default_model="emoji")
    opened.jobs.nth(1).get_by_role("button").filter(has=page.get_by_role("img")).first.click()
    expect(page.get_by_role("dialog")).to_contain_text("face, scale -0.5; style, scale 0.8")
    page.get_by_role("button", name="Reuse settings").click()
    expect(page.get_by_role("listitem").filter(has_text="style as it was before")).to_be_visible()
    opened.draw()
    assert request_of(take(worker)).loras == both, "by the file that it was drawn with"
    page.get_by_role("button", name="Remove style").click()
    add(page, "style")
    page.get_by_label("Scale of style").fill("")
    opened.draw()
    assert request_of(take(worker)).loras == (both[0], LoraUse(name="style", sha256=NEW_STYLE))


def test_a_scale_that_is_refused_is_said_in_its_row(visit: Open, worker: FakeWorker) -> None:
    worker.announce(models=(WITH_LORAS,), default_model="emoji")
    page = (opened := visit()).page
    for name in ("face", "style"):
        add(page, name)
    page.get_by_label("Scale of style").fill("11")
    opened.draw()
    expect(page.get_by_label("Scale of style")).to_be_focused()
    expect(page.get_by_label("Scale of style")).to_have_accessible_description(
        "Input should be less than or equal to 10"
    )
    expect(page.get_by_label("Scale of face")).not_to_have_attribute("aria-invalid", "true")
    page.get_by_label("Scale of style").fill("1")
    opened.draw()
    assert len(request_of(take(worker)).loras) == 2


def test_no_more_can_be_added_than_a_request_takes(visit: Open, worker: FakeWorker) -> None:
    loras = [LoraInfo(name=f"l{number}", sha256=FACE) for number in range(MAX_LORAS + 1)]
    worker.announce(models=(EMOJI.model_copy(update={"loras": loras}),), default_model="emoji")
    page = (opened := visit()).page
    for lora in loras[:-1]:
        expect(page.get_by_label("Add a LoRA")).to_be_visible()
        add(page, lora.name)
    expect(page.get_by_label("Add a LoRA")).to_be_hidden()
    opened.draw()
    assert len(request_of(take(worker)).loras) == MAX_LORAS

"""The measures of what is drawn say what they should of sets whose answer is known."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image

from tests.training.tiny import captioned_shades, tiny_text_denoiser
from tests.worker.engine.harness import ask, draw, filled_pool
from training import compare, evaluate
from training.__main__ import main
from training.contrastive import train_dual_encoder
from training.data.emoji import BACKGROUNDS, load_emoji
from training.drawing import Artist, Drawing
from training.metrics.distributions import (
    copy_shares,
    frechet_distance,
    precision_and_recall,
    share_interval,
    two_sample_test,
)
from training.metrics.retrieval import background_of, colour_of, retrieval, tint_between_seeds
from training.opening import open_version
from worker.contract import LabelCondition
from worker.store import ModelStore

DRAW = torch.Generator().manual_seed(0)


def test_the_frechet_distance_of_two_gaussians() -> None:
    """|m - n|² + sum (s - t)² for independent values of deviations s and t."""
    normal = torch.randn(40_000, 3, generator=DRAW)
    first, second = normal * torch.tensor([1.0, 2.0, 3.0]), normal.flip(0) * torch.tensor([2.0, 2.0, 1.0]) + 1
    assert frechet_distance(first, second) == pytest.approx(3 + 1 + 0 + 4, rel=0.03)
    assert frechet_distance(first, first) == pytest.approx(0, abs=1e-6)


def test_precision_falls_with_what_is_strange_and_recall_with_what_is_missing() -> None:
    real = torch.cat([torch.randn(100, 2, generator=DRAW), 50 + torch.randn(100, 2, generator=DRAW)])
    half = torch.randn(200, 2, generator=DRAW)
    precision, recall = precision_and_recall(real, half)
    assert precision > 0.85
    assert recall == pytest.approx(0.5, abs=0.08)
    precision, recall = precision_and_recall(half, real)
    assert precision == pytest.approx(0.5, abs=0.08)
    assert recall > 0.85


def test_copies_of_training_images_are_counted() -> None:
    train, held_out = torch.randn(300, 1, 8, 8, generator=DRAW), torch.randn(100, 1, 8, 8, generator=DRAW)
    drawn = torch.cat([train[:25] + 0.05, torch.randn(75, 1, 8, 8, generator=DRAW)])
    assert copy_shares(train, held_out, drawn) == (0.25, 0.0)


def test_a_classifier_tells_what_differs_and_nothing_else() -> None:
    real = torch.randn(200, 1, 8, 8, generator=DRAW)
    same = torch.randn(200, 1, 8, 8, generator=DRAW)
    assert two_sample_test(real, same, seed=0, steps=60) == pytest.approx(0.5, abs=0.13)
    assert two_sample_test(real, same + 0.7, seed=0, steps=60) > 0.9


def test_the_interval_of_a_share() -> None:
    """Wilson's interval of 8 of 10, as tables give it."""
    low, high = share_interval(0.8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)
    assert share_interval(1.0, 50)[1] == 1.0


def test_a_judge_finds_the_prompt_of_real_pictures_and_not_of_others() -> None:
    source = captioned_shades(48)
    denoiser, tokenizer = tiny_text_denoiser(source)
    assert denoiser.text_encoder is not None
    judge = train_dual_encoder(
        denoiser.text_encoder, source, tokenizer, steps=40, batch_size=24, seed=0, device=torch.device("cpu")
    )
    prompts = list(source.captions)
    candidates = sorted(set(prompts))
    right = retrieval(judge, tokenizer, source.images(), prompts, candidates)
    assert right.r_at_1 > 0.9
    assert right.r_at_5 == 1.0
    wrong = retrieval(judge, tokenizer, source.images().roll(1, 0), prompts, candidates)
    assert wrong.r_at_1 < 0.1


def test_backgrounds_and_colours_are_read_off_the_pixels() -> None:
    emoji = load_emoji(32)
    rows = [index for index, drawing in enumerate(emoji.drawings) if drawing.colour is not None][::20]
    rows += [index for index, drawing in enumerate(emoji.drawings) if drawing.caption() == "red heart"]
    right_colours, right_backgrounds, total = 0, 0, 0
    for background in BACKGROUNDS:
        pictures = emoji.pictures(torch.tensor(rows), [background] * len(rows)).permute(0, 2, 3, 1)
        for row, pixels in zip(rows, pictures, strict=True):
            right_backgrounds += background_of(pixels) == background
            right_colours += colour_of(pixels, background) == (emoji.drawings[row].colour or "red")
            total += 1
    assert right_backgrounds / total > 0.97
    assert right_colours / total > 0.85


def test_a_tint_is_what_differs_between_the_seeds_of_a_prompt() -> None:
    """Its own colours differ between prompts, and a pixel's noise leaves the mean as it is."""
    pictures = torch.randint(60, 180, (3, 1, 8, 8, 3), generator=DRAW).expand(3, 4, 8, 8, 3)
    assert tint_between_seeds(pictures.to(torch.uint8)) == 0
    tints = torch.tensor([-30, -10, 10, 30])[None, :, None, None, None]
    assert tint_between_seeds((pictures + tints).to(torch.uint8)) == pytest.approx((2000 / 3) ** 0.5)
    red = tints * torch.tensor([1, 0, 0])
    assert tint_between_seeds((pictures + red).to(torch.uint8)) == pytest.approx((2000 / 9) ** 0.5)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two versions of a digits model, hardly trained."""
    root = tmp_path_factory.mktemp("measured")
    quick = ["--steps", "4", "--publish-every", "2", "--width", "8", "--layers", "1", "--batch", "8", "--threads", "1"]
    assert main(["--store", str(root / "store"), "--state", str(root / "state"), *quick], {}) == 0
    return root / "store"


def test_a_version_is_measured_by_its_name(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "numbers.json"
    arguments = ["digits", "--store", str(store), "--samples", "64", "--steps", "3", "--json", str(out)]
    assert evaluate.main(arguments, {}) == 0
    assert "two sample accuracy" in capsys.readouterr().out
    numbers = json.loads(out.read_text())
    assert numbers["version"] == ModelStore(store).current("digits")
    assert numbers["two_sample_accuracy"] > 0.9, "noise is distinguished from digits"
    assert numbers["frechet_distance"] > 3 * numbers["frechet_distance_of_real_halves"]
    assert numbers["near_copies"] == 0
    assert numbers["samples"] == 64


def test_what_is_measured_is_what_requests_get(store: Path) -> None:
    """To the bit, from the serving engine and of the version that was named."""
    first, current = ModelStore(store).versions("digits")
    asked = {3: 5, 8: 9}
    for name, version in (("digits", current), (f"digits@{first}", first)):
        artist = Artist(open_version(name, ModelStore(store)))
        drawn = artist.draw([*asked.values()], [LabelCondition(label=label) for label in asked], Drawing(steps=3))
        for image, (label, seed) in zip(drawn, asked.items(), strict=True):
            request = ask(seed=seed, steps=3, class_label=label, model="digits", version=version)
            (served,) = draw(filled_pool(ModelStore(store)), request)
            assert torch.equal(image, torch.from_numpy(served))


def test_a_version_that_cannot_be_served_is_one_clear_line(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(store, tmp_path / "store")
    path = ModelStore(tmp_path / "store").checkpoint("digits").path / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["golden"]["seed"] += 1
    path.write_text(json.dumps(manifest))
    assert evaluate.main(["digits", "--store", str(tmp_path / "store"), "--samples", "8"], {}) == 1
    lines = capsys.readouterr().err.strip().splitlines()
    assert lines[-1].startswith("error: digits@")
    assert "can't be drawn: " in lines[-1]
    assert "golden output" in lines[-1]


def test_two_versions_are_drawn_side_by_side(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = ModelStore(store).versions("digits")
    out = tmp_path / "both.png"
    arguments = [f"digits@{first}", f"digits@{second}", "--out", str(out)]
    assert compare.main(arguments, {"REVERIE_STORE": str(store)}) == 0
    assert f"first: digits/{first}" in capsys.readouterr().out
    with Image.open(out) as picture:
        assert picture.size == (8 * 8, 8 * 8)  # 4 rows of 8 images for each version, 8 pixels high


@pytest.mark.parametrize(
    ("module", "arguments", "reason"),
    [
        (evaluate, ["digits@000000009-00000000"], "model digits has no version 000000009-00000000"),  # a bundled one
        (evaluate, ["nobody", "--store", "STORE"], "no model nobody"),
        (evaluate, ["digits@x", "--store", "STORE"], "need a version"),
        (evaluate, ["digits", "--store", "STORE", "--samples", "2"], "at least 8, got 2"),
        (evaluate, ["digits", "--store", "STORE", "--steps", "0"], "need --steps from 1 to 1000, got 0"),
        (evaluate, ["digits", "--store", "STORE", "--sampler", "ddpm", "--eta", "1"], "--eta goes with --sampler ddim"),
        (compare, ["digits", "digits", "--store", "STORE", "--out", "no/such/folder/x.png"], "can't write no/such"),
        (compare, ["digits", "--store", "STORE"], "need two versions, or --prompts"),
        (compare, ["digits", "--store", "STORE", "--prompts", "no/such.txt"], "can't read no/such.txt"),
        (compare, ["digits", "--store", "STORE", "--prompts", __file__], "digits takes no prompts"),
        (compare, ["digits", "--store", "STORE", "--prompts", __file__, "--images", "0"], "at least 1, got 0"),
    ],
)
def test_what_cannot_be_measured_is_one_clear_line(
    store: Path, capsys: pytest.CaptureFixture[str], module: object, arguments: list[str], reason: str
) -> None:
    given = [str(store) if argument == "STORE" else argument for argument in arguments]
    run = evaluate.main if module is evaluate else compare.main
    assert run(given, {}) == 1
    message = capsys.readouterr().err.strip()
    assert message.startswith("error: ")
    assert reason in message
    assert "\n" not in message

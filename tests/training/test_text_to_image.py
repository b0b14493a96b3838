"""From captioned pictures to a published text-to-image model that other libraries open."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel, CLIPTokenizer

from tests.training.tiny import captioned_shades, quick, tiny_text_denoiser, write_captioned_squares
from training import compare, evaluate
from training.__main__ import main
from training.data.emoji import load_emoji
from training.drawing import Drawing
from training.network import Conditions, Denoiser
from training.opening import OpenedVersion, open_version
from training.prompt_sheet import prompt_lines
from training.publishing import spacing_of
from training.sampling import draw_images
from training.sheets import SHEET_STEPS, sheet_captions, sheet_images
from training.text import CaptionTokenizer
from worker.contract import SamplerName
from worker.models.errors import BrokenModel
from worker.models.loading import load_checkpoint
from worker.store import GoldenOutput, ModelStore, RequestDefaults

TINY = [
    *("--channels", "8,16", "--layers", "1", "--text-width", "32", "--text-layers", "1", "--vocabulary", "700"),
    *("--batch", "4", "--steps", "2", "--contrastive-steps", "1", "--held-out-rows", "4", "--threads", "1"),
]
PROMPTS = ["a red square", "", "a blue square on the left of much else that is cut off"]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> OpenedVersion:
    """Two steps on twelve captioned squares."""
    root = tmp_path_factory.mktemp("captioned")
    write_captioned_squares(root / "pictures")
    arguments = ["--data", str(root / "pictures"), "--size", "8", "--prediction", "v_prediction", "--tokens", "8"]
    places = ["--store", str(root / "store"), "--state", str(root / "state")]
    requests = ["--request-sampler", "ddpm", "--request-steps", "3", "--example-prompts", "a red square, large | blue"]
    assert main([*arguments, *places, *TINY, *requests, "--schedule", "cosine", "--zero-terminal-snr"], {}) == 0
    return open_version("pictures", ModelStore(root / "store"))


def test_the_manifest_names_the_components(opened: OpenedVersion) -> None:
    manifest = opened.checkpoint.manifest
    assert {name: component.class_name for name, component in manifest.components.items()} == {
        "unet": "UNet2DConditionModel",
        "text_encoder": "CLIPTextModel",
        "tokenizer": "CLIPTokenizer",
        "scheduler": "DDIMScheduler",
    }
    assert "vae" in manifest.absent
    assert manifest.recipe.settings["prediction"] == "v_prediction"


def test_requests_are_drawn_as_the_run_was_told_and_so_is_a_sheet_of_prompts(
    opened: OpenedVersion, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = opened.checkpoint.manifest
    assert manifest.request_defaults == RequestDefaults(sampler=SamplerName.DDPM, steps=3)
    assert manifest.example_prompts == ["a red square, large", "blue"]
    (tmp_path / "prompts.txt").write_text("a red square\n\na blue square\na square\n")
    files = ["--prompts", str(tmp_path / "prompts.txt"), "--out", str(tmp_path / "sheet.png")]
    store = str(opened.checkpoint.path.parents[1])
    sheets = []
    for options in ([], ["--sampler", "ddpm", "--steps", "3", "--guidance-scale", "3"], ["--steps", "2"]):
        assert compare.main(["pictures", "--store", store, *files, "--images", "2", *options], {}) == 0
        sheets.append((tmp_path / "sheet.png").read_bytes())
    assert sheets[0] == sheets[1] != sheets[2]
    with Image.open(tmp_path / "sheet.png") as sheet:
        assert sheet.height == 2 * (64 + 2), "two of three prompts below each other, 8 pixels as 64"
    assert compare.main(["pictures", "pictures", "--store", store, *files, "--images", "2"], {}) == 0
    assert capsys.readouterr().out.count(f"pictures/{manifest.version}") == 5


def test_a_loader_compares_tokenizer_encoder_and_network_with_what_was_published(opened: OpenedVersion) -> None:
    checkpoint, cpu = opened.checkpoint, torch.device("cpu")
    golden = checkpoint.manifest.golden
    assert isinstance(golden, GoldenOutput)
    assert golden.prompt
    load_checkpoint(checkpoint, cpu, torch.float32)
    other = checkpoint.manifest.model_copy(update={"golden": golden.model_copy(update={"prompt": "a red square"})})
    with pytest.raises(BrokenModel, match="need the golden output within"):
        load_checkpoint(replace(checkpoint, manifest=other), cpu, torch.float32)


def test_other_libraries_open_each_component_and_say_the_same(opened: OpenedVersion) -> None:
    folder = opened.checkpoint.path
    tokenizer = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    encoder = CLIPTextModel.from_pretrained(folder / "text_encoder")
    unet = UNet2DConditionModel.from_pretrained(folder / "unet")
    assert opened.tokenizer is not None
    tokens = tokenizer(PROMPTS, padding="max_length", truncation=True, return_tensors="pt").input_ids
    assert torch.equal(tokens, opened.tokenizer(PROMPTS))
    x_t, t = torch.randn(3, 3, 8, 8), torch.tensor([0, 500, 999])
    with torch.no_grad():
        states = encoder(tokens).last_hidden_state
        output = unet(x_t, t, encoder_hidden_states=states, return_dict=False)[0]
        ours = Denoiser(unet, encoder)(x_t, t, Conditions(tokens=tokens))
    torch.testing.assert_close(output, ours, rtol=1e-5, atol=1e-6)


# It sets steps_offset and clip_sample as Stable Diffusion has them, and says so.
@pytest.mark.filterwarnings("ignore:The configuration file of this scheduler")
def test_diffusers_draws_from_the_directory(opened: OpenedVersion) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(opened.checkpoint.path, vae=None)
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.scheduler.config.rescale_betas_zero_snr
    assert pipeline.scheduler.config.timestep_spacing == "trailing"
    x_0 = pipeline("a red square", num_inference_steps=2, output_type="latent").images
    assert x_0.shape == (1, 3, 8, 8)
    assert bool(torch.isfinite(x_0).all())


def test_a_tokenizer_is_the_same_after_it_was_saved(tmp_path: Path) -> None:
    tokenizer = CaptionTokenizer.learn(load_emoji(32).caption_corpus(), 1200, 16)
    tokenizer.save(tmp_path / "tokenizer")
    again = CaptionTokenizer.open(tmp_path / "tokenizer")
    texts = ["purple rocket on a yellow background", "", "Été 東京 🚀 <|endoftext|>", "word " * 10_000]
    tokens = tokenizer(texts)
    assert torch.equal(tokens, again(texts))
    assert tokens.shape == (4, 16)
    begin, end = len(tokenizer.vocabulary) - 2, len(tokenizer.vocabulary) - 1
    assert (tokens[:, 0] == begin).all()
    assert tokens[1].tolist() == [begin] + [end] * 15
    assert (tokens[2] == begin).sum() == 1, "a mark in a prompt is text"
    assert tokens[3, 15] == end


def test_emoji_are_measured_by_what_their_prompts_say(tmp_path: Path) -> None:
    places = ["--store", str(tmp_path / "store"), "--state", str(tmp_path / "state")]
    assert main(["--preset", "emoji", *places, *TINY], {}) == 0
    version = open_version("emoji", ModelStore(tmp_path / "store"))
    assert version.checkpoint.manifest.recipe.settings["publish_dtype"] == "float16"
    numbers = evaluate.evaluate(version, evaluate.Options(samples=10, steps=1, guidance_scale=3.0, judge_steps=2))
    for kind in ("plain", "held_out_pairs", "seen_pairs"):
        assert numbers[f"{kind}_samples"] == 10
        assert 0 <= numbers[f"{kind}_r_at_1_low"] <= numbers[f"{kind}_r_at_1"] <= numbers[f"{kind}_r_at_5"] <= 1
        assert numbers[f"{kind}_background_right_real"] == 1
    assert numbers["held_out_pairs_colour_right_real"] >= 0.8
    assert "plain_colour_right" not in numbers
    assert numbers["tint_between_seeds"] > 0
    examples = list(version.checkpoint.manifest.example_prompts)
    assert examples
    asked = [*examples, "purple heart", "blue apple", "blue apple on a red background", "cat with hat"]
    texts = [line.text for line in prompt_lines(version, asked, 1, Drawing(steps=1))]
    assert texts[-4:] == ["purple heart", "blue apple *", "blue apple on a red background *", "cat with hat"]
    assert 2 <= sum(text.endswith(" *") for text in texts[: len(examples)]) < len(examples), "some new, some known"


def test_a_sheet_while_training_is_drawn_by_the_sampler_and_with_the_guidance_of_requests() -> None:
    source = captioned_shades(4)
    denoiser, tokenizer = tiny_text_denoiser(source)
    plain = quick(data="emoji")
    asked = quick(data="emoji", request_sampler="ddpm", request_guidance_scale=1.5)
    count, captions = 4, sheet_captions(source, 4)
    assert captions is not None
    by_hand = draw_images(
        denoiser,
        asked.noise_schedule(),
        source.shape,
        range(count),
        Conditions(tokens=tokenizer(captions)),
        steps=SHEET_STEPS,
        sampler=SamplerName.DDPM,
        spacing=spacing_of(asked),
        guidance_scale=1.5,
        without=Conditions(tokens=tokenizer([""])),
    )
    assert torch.equal(sheet_images(denoiser, source, tokenizer, asked, count), by_hand)
    assert not torch.equal(sheet_images(denoiser, source, tokenizer, plain, count), by_hand)

"""Prompts as the text encoder's hidden states: what the reference pipelines give, one text per call."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionPipeline
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import CLIPTextModel, CLIPTokenizer

from tests.worker.engine.harness import CPU
from tests.worker.text_pipeline import TOKENS, text_encoder, write_text_pipeline, write_tokenizer
from worker.conditioning.conditioning import Conditioning, ConditionRefusedError, Encoding
from worker.conditioning.text import Text, TextReader
from worker.conditioning.text_encoder import ENCODINGS_KEPT, Asked, PromptTokenizer, TextEncoder
from worker.contract import MAX_PROMPT_CHARACTERS, Condition, Guidance, LabelCondition, NoCondition, TextCondition

STATES = "encoder_hidden_states"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("text")
    write_text_pipeline(folder)
    return folder


@pytest.fixture
def text(folder: Path) -> Text:
    reader = TextReader(PromptTokenizer(folder / "tokenizer"), TextEncoder(folder / "text_encoder", CPU))
    return Text("m", (reader,), STATES)


def asked(text: Text, prompt: str) -> Asked:
    return Asked(text.readers[0].tokenizer(prompt).ids)


def made(encoding: Encoding) -> Conditioning:
    (made,) = encoding.assemble([call() for call in encoding.calls])
    return made


def prompted(prompt: str, negative_prompt: str = "") -> Condition:
    return TextCondition(prompt=prompt, negative_prompt=negative_prompt)


def test_the_states_are_those_of_the_reference_pipeline(folder: Path, text: Text) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(folder, vae=None)
    for prompt, negative in (("a cat and a dog!", "blurry"), ("", "dog"), ("Ein HÜBSCHES\tBild 🐱 " * 20, "")):
        positive, unconditional = pipeline.encode_prompt(prompt, CPU, 1, True, negative_prompt=negative)
        states = made(text(prompted(prompt, negative), Guidance(scale=5))).named[STATES]
        torch.testing.assert_close(states, torch.cat([unconditional, positive]), rtol=1e-5, atol=1e-6)


@given(prompt=st.text(max_size=300))
@example(prompt="0000\x80𐀀𐀀\x1f")
@settings(max_examples=200, deadline=None)
def test_the_ids_are_those_of_the_library_at_one_length(folder: Path, prompt: str) -> None:
    if "<|" in prompt:
        return
    library: Any = CLIPTokenizer.from_pretrained(folder / "tokenizer")
    tokens = PromptTokenizer(folder / "tokenizer")(prompt)
    assert len(tokens.ids) == TOKENS
    assert list(tokens.ids) == library(prompt, padding="max_length", truncation=True).input_ids
    assert prompt.endswith(tokens.lost) or prompt.strip().endswith(tokens.lost)
    assert bool(tokens.lost) == (len(library(prompt).input_ids) > TOKENS) or not prompt.strip()


@pytest.mark.parametrize(
    ("condition", "w", "texts"),
    [
        (prompted("cat", "dog"), 1.0, ["cat"]),
        (prompted("cat", "dog"), 0.0, ["dog"]),
        (prompted("cat", "dog"), 3.0, ["dog", "cat"]),
        (prompted("cat"), 3.0, ["", "cat"]),
        (prompted("cat", "cat"), 3.0, ["cat"]),
        (prompted(""), 3.0, [""]),
        (NoCondition(), 3.0, [""]),
    ],
)
def test_guidance_takes_a_second_row_only_where_it_mixes_two(
    text: Text, condition: Condition, w: float, texts: list[str]
) -> None:
    conditioning = made(text(condition, Guidance(scale=w)))
    assert (conditioning.rows, conditioning.guidance_scale) == (len(texts), w)
    expected = torch.stack([text.readers[0].encoder.encode(asked(text, each)).states for each in texts])
    assert torch.equal(conditioning.named[STATES], expected)


def test_a_text_is_encoded_once_and_the_least_recently_used_leaves_first(text: Text) -> None:
    first = text(prompted("cat", "dog"), Guidance(scale=3))
    assert len(first.calls) == 2
    assert torch.equal(made(first).named[STATES], made(text(prompted("cat", "dog"), Guidance(scale=3))).named[STATES])
    assert len(text(prompted("cat", "dog"), Guidance(scale=3)).calls) == 0
    for number in range(ENCODINGS_KEPT - 1):
        assert text.readers[0].encoder.known(asked(text, "cat")) is not None
        made(text(prompted(str(number)), Guidance()))
    assert len(text(prompted("cat"), Guidance()).calls) == 0
    assert len(text(prompted("dog"), Guidance()).calls) == 1


def test_what_is_encoded_stays_at_hand_however_many_others_come_before_it_is_needed(text: Text) -> None:
    made(text(prompted("dog"), Guidance()))
    encoding = text(prompted("cat", "dog"), Guidance(scale=3))
    assert len(encoding.calls) == 1
    for number in range(ENCODINGS_KEPT + 1):
        made(text(prompted(str(number)), Guidance()))
    assert made(encoding).rows == 2


def test_a_prompt_that_is_cut_is_reported_with_the_words_that_were_lost(text: Text) -> None:
    prompt = "cat " * 13 + "dog and a cat, dog"
    encoding = text(prompted(prompt, "dog " * 14), Guidance())
    assert encoding.warnings == ("prompt: m reads 14 tokens of it, lost: and a cat, dog",)
    assert text(prompted("cat " * 14), Guidance(scale=2)).warnings == ()
    negative, positive = text(prompted(prompt, "dog " * 15), Guidance(scale=2)).warnings
    assert (negative, positive) == (
        "negative_prompt: m reads 14 tokens of it, lost: dog",
        "prompt: m reads 14 tokens of it, lost: and a cat, dog",
    )


def test_a_long_end_is_reported_in_part(text: Text) -> None:
    (warning,) = text(prompted("x" * MAX_PROMPT_CHARACTERS), Guidance()).warnings
    assert warning.endswith("lost: " + "x" * 200 + "…")


@pytest.mark.parametrize("prompt", ["a <|endoftext|> cat", "<|startoftext|>", "a<|EndOfText|>b"])
def test_special_tokens_in_a_prompt_are_refused(text: Text, prompt: str) -> None:
    with pytest.raises(ConditionRefusedError, match=r"^prompt: a prompt can't contain the special token <\|"):
        text(prompted(prompt), Guidance())
    with pytest.raises(ConditionRefusedError, match=r"^negative_prompt: "):
        text(prompted("cat", prompt), Guidance(scale=2))


def test_a_pad_token_that_is_a_plain_character_is_text(tmp_path: Path) -> None:
    """Stable Diffusion 2 pads with "!"."""
    write_tokenizer(tmp_path / "tokenizer", pad="!")
    tokens = PromptTokenizer(tmp_path / "tokenizer")("a cat!")
    library: Any = CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert list(tokens.ids) == library("a cat!", padding="max_length", truncation=True).input_ids


def test_a_label_is_refused(text: Text) -> None:
    with pytest.raises(ConditionRefusedError, match="model m takes a prompt, got class_label 0"):
        text(LabelCondition(label=0), Guidance())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_encoder_computes_in_float32_whatever_its_file_holds(tmp_path: Path, dtype: torch.dtype) -> None:
    encoder: Any = text_encoder()
    encoder.to(dtype).save_pretrained(tmp_path / "half")
    assert CLIPTextModel.from_pretrained(tmp_path / "half").dtype == dtype
    states = TextEncoder(tmp_path / "half", CPU).encode(Asked((516, 513, 517))).states
    expected = encoder.float()(input_ids=torch.tensor([[516, 513, 517]])).last_hidden_state[0]
    assert states.dtype == torch.float32
    torch.testing.assert_close(states, expected, rtol=1e-5, atol=1e-6)


def test_clip_skip_leaves_out_the_last_layers_and_keeps_the_final_norm_for_the_prompt_alone(
    folder: Path, text: Text
) -> None:
    """As diffusers does it: hidden_states[-(k + 1)], then final_layer_norm."""
    library: Any = text_encoder()
    conditioning = made(text(TextCondition(prompt="a cat", negative_prompt="dog", clip_skip=1), Guidance(scale=2)))
    negative, positive = (torch.tensor([asked(text, each).ids]) for each in ("dog", "a cat"))
    skipped = library.final_layer_norm(library(positive, output_hidden_states=True).hidden_states[-2])
    expected = torch.cat([library(negative).last_hidden_state, skipped])
    torch.testing.assert_close(conditioning.named[STATES], expected, rtol=1e-5, atol=1e-6)
    assert len(text(TextCondition(prompt="a cat", clip_skip=1), Guidance()).calls) == 0, "kept by clip_skip, too"
    assert len(text(TextCondition(prompt="a cat", clip_skip=0), Guidance()).calls) == 1


def test_more_layers_than_the_encoder_has_are_refused(text: Text) -> None:
    with pytest.raises(ConditionRefusedError, match="need clip_skip <= 1 for model m, got 2"):
        text(TextCondition(prompt="a cat", clip_skip=2), Guidance())

"""Tiny random text-to-image pipelines in pixel space, as diffusers and transformers save them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from worker.store import Checkpoint, ModelStore, Recipe, write_text_to_image_index

TEXT = "text"
TOKENS = 16
"""Length of a prompt in tokens."""

CHAIN_CONFIG: Mapping[str, object] = {
    "_class_name": "DDPMScheduler",
    "num_train_timesteps": 1000,
    "beta_schedule": "linear",
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "prediction_type": "epsilon",
    "clip_sample": False,
    "timestep_spacing": "leading",
    "steps_offset": 1,
}


def byte_characters() -> list[str]:
    """GPT-2's characters for the 256 bytes, in the order of the vocabulary."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [chr(byte) for byte in kept] + [chr(256 + index) for index in range(256 - len(kept))]


def write_tokenizer(folder: Path, *, length: int = TOKENS, pad: str = "<|endoftext|>") -> CLIPTokenizer:
    """A byte-level CLIP tokenizer that knows the words "cat" and "dog": 518 entries, BOS 516, EOS 517."""
    merges, characters = ["c a", "ca t</w>", "d o", "do g</w>"], byte_characters()
    tokens = [*characters, *(each + "</w>" for each in characters), *(each.replace(" ", "") for each in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    config = {"tokenizer_class": "CLIPTokenizer", "model_max_length": length, "bos_token": tokens[-2]}
    config |= {"eos_token": tokens[-1], "unk_token": tokens[-1], "pad_token": pad}
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "".join(merge + "\n" for merge in merges))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return CLIPTokenizer.from_pretrained(folder)


def text_encoder(weights_seed: int = 0, **overrides: Any) -> CLIPTextModel:
    """Random, 32 wide, two layers."""
    config = {
        "bos_token_id": 516,
        "eos_token_id": 517,
        "pad_token_id": 517,
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_attention_heads": 4,
        "num_hidden_layers": 2,
        "vocab_size": 518,
        "max_position_embeddings": TOKENS,
    }
    with torch.random.fork_rng():
        torch.manual_seed(weights_seed)
        return CLIPTextModel(CLIPTextConfig(**(config | overrides))).eval()


def text_unet(weights_seed: int = 0, **overrides: Any) -> UNet2DConditionModel:
    """Random, [N, 3, 16, 16], cross-attention at 8x8, the pooled text beside the timestep."""
    config = {
        "sample_size": 16,
        "in_channels": 3,
        "out_channels": 3,
        "layers_per_block": 1,
        "block_out_channels": (16, 32),
        "norm_num_groups": 8,
        "attention_head_dim": 8,
        "cross_attention_dim": 32,
        "encoder_hid_dim": None,
        "addition_embed_type": "text",
        "addition_embed_type_num_heads": 4,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    with torch.random.fork_rng():
        torch.manual_seed(weights_seed)
        return UNet2DConditionModel(**(config | overrides)).eval()


def write_text_pipeline(
    folder: Path,
    *,
    weights_seed: int = 0,
    chain_config: Mapping[str, object] = CHAIN_CONFIG,
    max_shard_size: str = "1GB",
    variant: str | None = None,
) -> None:
    """Write a whole pipeline into the empty `folder`."""
    saved: dict[str, Any] = {"max_shard_size": max_shard_size, "variant": variant}
    text_unet(weights_seed).save_pretrained(folder / "unet", **saved)
    text_encoder(weights_seed).save_pretrained(folder / "text_encoder", **saved)
    write_tokenizer(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(dict(chain_config)))
    write_text_to_image_index(folder)


def publish_text(
    store: ModelStore, model: str = TEXT, *, weights_seed: int = 0, step: int = 1, make_current: bool = True
) -> Checkpoint:
    """Publish a random text-to-image model, different for each `weights_seed`."""
    return store.publish(
        model,
        lambda folder: write_text_pipeline(folder, weights_seed=weights_seed),
        step=step,
        recipe=Recipe(command="publish_text", data="none"),
        make_current=make_current,
    )

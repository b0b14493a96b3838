"""Text as a condition: a tokenizer learnt from the captions and a small text encoder, both in CLIP's layout."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from training.errors import DataError

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
END_OF_WORD = "</w>"
MAX_CAPTION_CHARACTERS = 2000
"""Far more than any tokens are kept of; the rest of a longer caption is not looked at."""


class CaptionTokenizer:
    """CLIP's byte-level BPE with a vocabulary of its own, and a fixed number of tokens a caption.

    Args:
        vocabulary: token → id, the two marks last, as in CLIP.
        merges: pairs, the most frequent first.
        num_tokens: ids per caption, the marks counted.
    """

    def __init__(self, vocabulary: dict[str, int], merges: Sequence[tuple[str, str]], num_tokens: int) -> None:
        if num_tokens < 3:
            raise DataError(f"need at least 3 tokens a caption, got {num_tokens}")
        self.vocabulary = vocabulary
        self.merges = list(merges)
        self.num_tokens = num_tokens
        self._tokenizer: Any = None

    @classmethod
    def learn(cls, captions: Iterable[str], vocabulary_size: int, num_tokens: int) -> "CaptionTokenizer":
        """Learn the vocabulary from captions, of which there must be some."""
        backend = CLIPTokenizer().backend_tokenizer
        learner = Tokenizer(BPE(continuing_subword_prefix="", end_of_word_suffix=END_OF_WORD))
        learner.normalizer, learner.pre_tokenizer = backend.normalizer, backend.pre_tokenizer
        alphabet = sorted(ByteLevel.alphabet())
        # Every byte has a token with and without the end of a word, so that any text can be encoded.
        base = [*alphabet, *(letter + END_OF_WORD for letter in alphabet)]
        trainer = BpeTrainer(
            vocab_size=vocabulary_size - len(alphabet) - 2,
            initial_alphabet=alphabet,
            end_of_word_suffix=END_OF_WORD,
            show_progress=False,
        )
        learner.train_from_iterator((caption[:MAX_CAPTION_CHARACTERS] for caption in captions), trainer)
        model = json.loads(learner.to_str())["model"]
        merges = [(str(left), str(right)) for left, right in model["merges"]]
        tokens = list(dict.fromkeys([*base, *(left + right for left, right in merges)]))
        vocabulary = {token: index for index, token in enumerate([*tokens, BEGIN, END])}
        return cls(vocabulary, merges, num_tokens)

    @classmethod
    def open(cls, folder: Path) -> "CaptionTokenizer":
        """What `save` wrote."""
        vocabulary = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
        lines = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()[1:]
        pairs = [line.split(" ") for line in lines if line]
        configuration = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
        return cls(vocabulary, [(left, right) for left, right in pairs], configuration["model_max_length"])

    def __getstate__(self) -> dict[str, object]:
        return self.__dict__ | {"_tokenizer": None}

    def __call__(self, captions: Sequence[str]) -> Tensor:
        """[N, num_tokens] int64: BEGIN, the text, END, and END again as padding. Marks inside a text are text."""
        if self._tokenizer is None:  # made where it is used: data workers are other processes
            merges: Any = self.merges  # pairs, though it is annotated as text
            tokenizer = CLIPTokenizer(
                vocab=self.vocabulary, merges=merges, bos_token=BEGIN, eos_token=END, unk_token=END, pad_token=END
            ).backend_tokenizer
            tokenizer.enable_truncation(self.num_tokens)
            tokenizer.enable_padding(length=self.num_tokens, pad_id=self.vocabulary[END], pad_token=END)
            self._tokenizer = tokenizer
        cut = [caption[:MAX_CAPTION_CHARACTERS].replace("<|", "< |") for caption in captions]
        return torch.tensor([encoding.ids for encoding in self._tokenizer.encode_batch(cut)], dtype=torch.int64)

    def save(self, folder: Path) -> None:
        """`tokenizer/` of a pipeline, as CLIP's is."""
        folder.mkdir()
        marks = {"bos_token": BEGIN, "eos_token": END, "unk_token": END, "pad_token": END}
        (folder / "vocab.json").write_text(json.dumps(self.vocabulary, ensure_ascii=False), encoding="utf-8")
        lines = "".join(f"{left} {right}\n" for left, right in self.merges)
        (folder / "merges.txt").write_text(f"#version: 0.2\n{lines}", encoding="utf-8")
        (folder / "special_tokens_map.json").write_text(json.dumps(marks, indent=2) + "\n")
        configuration = marks | {
            "tokenizer_class": "CLIPTokenizer",
            "model_max_length": self.num_tokens,
            "do_lower_case": True,
            "add_prefix_space": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(configuration, indent=2) + "\n")


def build_text_encoder(tokenizer: CaptionTokenizer, *, width: int, layers: int, seed: int) -> CLIPTextModel:
    """A CLIP text encoder for the tokenizer's ids, freshly initialized from `seed`; heads of 32 channels."""
    if width < 32 or width % 32:
        raise DataError(f"need a text width that is a multiple of 32, got {width}")
    config = CLIPTextConfig(
        vocab_size=len(tokenizer.vocabulary),
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 32,
        max_position_embeddings=tokenizer.num_tokens,
        bos_token_id=tokenizer.vocabulary[BEGIN],
        eos_token_id=tokenizer.vocabulary[END],
        pad_token_id=tokenizer.vocabulary[END],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return CLIPTextModel(config)

"""How a tokenizer and the text encoder that reads its ids must fit each other. Loads no torch."""

from pathlib import Path

from worker.store.errors import BadCheckpoint
from worker.store.json_files import read_json_object


def text_width(folder: Path, encoder_name: str, tokenizer_name: str, where: str) -> int:
    """Of an encoder's hidden states. Raises BadCheckpoint unless the tokenizer fits it."""
    encoder = read_json_object(folder, f"{encoder_name}/config.json", where)
    tokenizer = read_json_object(folder, f"{tokenizer_name}/tokenizer_config.json", where)
    # Defaults of CLIPTextConfig.
    width, positions = encoder.get("hidden_size", 512), encoder.get("max_position_embeddings", 77)
    vocabulary = encoder.get("vocab_size", 49408)
    length = tokenizer.get("model_max_length")
    if not isinstance(width, int):
        raise BadCheckpoint(f"{where}: {encoder_name}: need hidden_size as a whole number, got {width!r}")
    if not (isinstance(length, int) and isinstance(positions, int) and 2 < length <= positions):
        raise BadCheckpoint(
            f"{where}: need a {tokenizer_name} with a model_max_length of 3 to {positions!r} tokens "
            f"(the text encoder's max_position_embeddings), got {length!r}"
        )
    largest = _largest_token_id(folder / tokenizer_name, where)
    if not isinstance(vocabulary, int) or largest >= vocabulary:
        raise BadCheckpoint(
            f"{where}: the {tokenizer_name} has an id {largest}, the text encoder knows ids below {vocabulary!r}"
        )
    return width


def _largest_token_id(folder: Path, where: str) -> int:
    """The largest id in the vocabulary of a tokenizer, added tokens included."""
    ids: list[object] = []
    if (folder / "tokenizer.json").is_file():
        tokenizer = read_json_object(folder, "tokenizer.json", where)
        model, added = tokenizer.get("model"), tokenizer.get("added_tokens")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
        ids += vocabulary.values() if isinstance(vocabulary, dict) else []
        ids += [entry.get("id") for entry in added if isinstance(entry, dict)] if isinstance(added, list) else []
    for name in ("vocab.json", "added_tokens.json"):
        if (folder / name).is_file():
            ids += read_json_object(folder, name, where).values()
    numbers = [each for each in ids if isinstance(each, int)]
    if not numbers or len(numbers) != len(ids):
        raise BadCheckpoint(f"{where}: the tokenizer's vocabulary must give an id for each of its tokens")
    return max(numbers)

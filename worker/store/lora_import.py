"""Takes a LoRA file into the store, or says why it fits no model there."""

from pathlib import Path

from worker.store.errors import BadLora, StoreError
from worker.store.lora_file import read_pairs, read_target
from worker.store.lora_store import Lora, LoraStore
from worker.store.model_store import ModelStore


def import_lora(store: ModelStore, file: Path, name: str, model: str | None = None) -> tuple[Lora, list[str]]:
    """The LoRA, and the models whose current versions it fits.

    Args:
        file: .safetensors in one of the layouts of `worker.store.lora_names`.
        name: to import it under; one that is there already gets this file from now on.
        model: the only one that it is for; None: all that it fits.

    Raises:
        BadLora: it fits none; the message names the tensors that don't.
        PublishFailed: the store could not take it.
    """
    if not file.is_file() or file.suffix != ".safetensors":
        raise StoreError(f"need a .safetensors file to import, got {str(file)!r}")
    fitting: list[str] = []
    components: set[str] = set()
    misfits: list[BadLora] = []
    for each in [model] if model is not None else store.models():
        checkpoint = store.checkpoint(each)
        where = f"{checkpoint.model}/{checkpoint.version}"
        classes = {part: component.class_name for part, component in checkpoint.manifest.components.items()}
        try:
            pairs = read_pairs(file, read_target(checkpoint.path, classes, where), file.name, where)
        except BadLora as error:
            misfits.append(error)
            continue
        fitting.append(each)
        components |= {pair.component for pair in pairs}
    if not fitting:
        several = f" (and {len(misfits) - 1} more models that it does not fit)" if len(misfits) > 1 else ""
        raise BadLora(f"{misfits[0]}{several}" if misfits else "the store has no model that it could be for")
    return LoraStore(store.root).publish(file, name, components=sorted(components), made_for=model), fitting

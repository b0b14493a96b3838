"""The smallest directory that the store takes as a checkpoint, made without torch."""

import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.store import Checkpoint, ModelStore, Recipe, write_index
from worker.store.manifest import NOISE_CONFIG_PATH, UNET_CONFIG_PATH, WEIGHTS_PATH

RECIPE = Recipe(command="python -m training", data="none")


def safetensors(value: float, count: int = 16) -> bytes:
    """A safetensors file of one float32 tensor filled with `value`."""
    header = json.dumps({"w": {"dtype": "F32", "shape": [count], "data_offsets": [0, 4 * count]}}).encode()
    return struct.pack("<Q", len(header)) + header + struct.pack("<f", value) * count


def write_tiny(folder: Path, value: float = 0.0, count: int = 16) -> None:
    """Write a whole, if useless, pipeline directory."""
    (folder / "unet").mkdir()
    (folder / "scheduler").mkdir()
    write_index(folder, "DDPMPipeline", {"unet": "UNet2DModel", "scheduler": "DDPMScheduler"})
    (folder / NOISE_CONFIG_PATH).write_text('{"num_train_timesteps": 1000}')
    (folder / UNET_CONFIG_PATH).write_text('{"sample_size": 8, "in_channels": 1, "out_channels": 1}')
    (folder / WEIGHTS_PATH).write_bytes(safetensors(value, count))


@contextmanager
def changed_byte(file: Path, position: float, flip: int) -> Iterator[None]:
    """The file with other bits in the byte at this part of its length, whole again afterwards."""
    whole = file.read_bytes()
    damaged = bytearray(whole)
    damaged[int(position * len(whole))] ^= flip
    try:
        file.write_bytes(damaged)
        yield
    finally:
        file.write_bytes(whole)


def publish_tiny(store: ModelStore, model: str = "digits", step: int = 1, make_current: bool = True) -> Checkpoint:
    """Publish a tiny version whose weights are the step number."""
    return store.publish(
        model,
        lambda folder: write_tiny(folder, float(step)),
        step=step,
        labels=["0", "1"],
        null_label=2,
        metrics={"held_out_loss": 0.5},
        recipe=RECIPE,
        make_current=make_current,
    )

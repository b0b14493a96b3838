"""The published metrics are those of the published weights, which are the averaged ones."""

from pathlib import Path

import pytest

from tests.training.tiny import quick
from training.__main__ import main
from training.data import split
from training.data.digits import load_digits
from training.loop import Budget, Trainer
from training.metrics.held_out import HeldOut
from training.network import Denoiser, build_unet
from training.sources import HELD_OUT_FRACTION, HELD_OUT_SEED
from worker.diffusion import NoiseSchedule
from worker.store import ModelStore

# The average lags far behind weights that move fast.
FAST = {"batch": 8, "learning_rate": 0.01, "warmup_steps": 0, "ema_gamma": 0.5}
STEPS = 12


def test_the_loss_of_the_averaged_weights_is_published_and_not_that_of_the_last(tmp_path: Path) -> None:
    flags = [text for name, value in FAST.items() for text in (f"--{name.replace('_', '-')}", str(value))]
    shape = ["--steps", str(STEPS), "--width", "8", "--layers", "1", "--fresh"]
    assert main(["--store", str(tmp_path / "store"), "--state", str(tmp_path / "state"), *flags, *shape], {}) == 0
    published = ModelStore(tmp_path / "store").checkpoint("digits").manifest.metrics["held_out_loss"]

    schedule = NoiseSchedule.linear()
    trained_on, held_out = split(load_digits(), HELD_OUT_FRACTION, HELD_OUT_SEED)
    trainer = Trainer(
        Denoiser(build_unet((1, 8, 8), 10, width=8, layers_per_block=1, seed=0)), trained_on, schedule, quick(**FAST)
    )
    trainer.run(Budget(steps=STEPS))
    evaluation = HeldOut.draw(held_out, schedule, seed=HELD_OUT_SEED)
    averaged, last = evaluation.loss(trainer.ema.network), evaluation.loss(trainer.denoiser.eval())
    assert abs(averaged - last) > 0.01 * averaged
    assert published == pytest.approx(averaged, rel=1e-4)

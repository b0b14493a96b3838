"""`python -m training`: train a model on a data set and publish it to a store."""

import argparse
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
from tqdm import tqdm

from training.digits import load_digits
from training.ema import PowerEma
from training.errors import DataError, SettingsError, TrainingError
from training.evaluation import HeldOut, baselines
from training.image_data import ImageData
from training.image_folder import load_image_folder
from training.loop import Budget, StepReport, TrainingSettings, as_eps_network, train
from training.network import build_unet
from training.publishing import library_versions, noise_schedule, publish_checkpoint
from worker.contract import MODEL_NAME_PATTERN
from worker.store import ModelStore, Recipe, StoreError
from worker.store.manifest import is_model_name

HELD_OUT_FRACTION = 1 / 6
HELD_OUT_SEED = 0
"""One split and one set of draws for all runs, whatever their seed: their losses can be compared."""


def parser() -> argparse.ArgumentParser:
    defaults = TrainingSettings()
    result = argparse.ArgumentParser(
        prog="python -m training",
        description="Train a diffusion model and publish it, so that a running worker takes it up.",
    )
    result.add_argument(
        "--data", default="digits", help="'digits' (comes along) or a folder of images (default: digits)"
    )
    result.add_argument("--size", type=int, metavar="PX", help="cut and scale the images of a folder to squares")
    result.add_argument(
        "--store", type=Path, required=True, help="folder of checkpoints to publish to; made when missing"
    )
    result.add_argument("--model", help="name to publish under (default: digits, or the name of the folder of images)")
    budget = result.add_mutually_exclusive_group()
    budget.add_argument("--minutes", type=float, help="how long to train (default: 3)")
    budget.add_argument("--seconds", type=float, help="how long to train")
    budget.add_argument("--steps", type=int, help="how many batches to train on")
    result.add_argument(
        "--publish-every", type=int, metavar="STEPS", help="publish on the way too, not only at the end"
    )
    result.add_argument("--seed", type=int, default=defaults.seed, help="of everything random (default: %(default)s)")
    result.add_argument("--batch", type=int, default=defaults.batch_size, help="images per step (default: %(default)s)")
    result.add_argument(
        "--learning-rate", type=float, default=defaults.learning_rate, help="at its peak (default: %(default)s)"
    )
    result.add_argument("--width", type=int, default=32, help="channels at full resolution (default: %(default)s)")
    result.add_argument("--layers", type=int, default=2, help="residual blocks per resolution (default: %(default)s)")
    result.add_argument("--threads", type=int, help="CPU threads (default: as torch chooses)")
    return result


def load_data(data: str, size_px: int | None) -> ImageData:
    """The data set that `--data` names."""
    if size_px is not None and size_px < 4:
        raise DataError(f"need --size of at least 4, got {size_px}")
    if data == "digits":
        if size_px is not None:
            raise DataError("--size is for folders of images; the digits are 8x8")
        return load_digits()
    return load_image_folder(Path(data), size_px)


def choose_budget(arguments: argparse.Namespace) -> Budget:
    if arguments.steps is not None:
        return Budget(steps=arguments.steps)
    if arguments.seconds is not None:
        return Budget(seconds=arguments.seconds)
    return Budget(seconds=60 * (3.0 if arguments.minutes is None else arguments.minutes))


def check_store(root: Path) -> None:
    """Fail now and not after training when the store can't be written."""
    try:
        root.mkdir(parents=True, exist_ok=True)
        probe = root / ".writable"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise SettingsError(f"can't write to the store {root}: {error.strerror}") from error


def run(arguments: argparse.Namespace, command: str) -> None:
    """Everything the command does. Raises TrainingError or StoreError."""
    model = arguments.model or ("digits" if arguments.data == "digits" else Path(arguments.data).resolve().name.lower())
    if not is_model_name(model):
        raise SettingsError(f"need a model name that matches {MODEL_NAME_PATTERN} (--model), got {model!r}")
    for option in ("publish_every", "threads"):
        if (value := getattr(arguments, option)) is not None and value < 1:
            raise SettingsError(f"need --{option.replace('_', '-')} of at least 1, got {value}")
    settings = TrainingSettings(seed=arguments.seed, batch_size=arguments.batch, learning_rate=arguments.learning_rate)
    budget = choose_budget(arguments)
    check_store(arguments.store)
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)

    data = load_data(arguments.data, arguments.size)
    train_data, held_out_data = data.split(HELD_OUT_FRACTION, HELD_OUT_SEED)
    schedule = noise_schedule()
    unet = build_unet(
        data.shape, len(data.label_names), width=arguments.width, layers_per_block=arguments.layers, seed=settings.seed
    )
    held_out = HeldOut.draw(held_out_data, schedule, seed=HELD_OUT_SEED)
    baseline_losses = baselines(held_out, train_data, schedule)
    recipe = Recipe(
        command=command,
        data=data.name,
        seed=settings.seed,
        settings=asdict(settings)
        | {"width": arguments.width, "layers_per_block": arguments.layers, "train_images": len(train_data)},
        libraries=library_versions(),
    )
    store = ModelStore(arguments.store)
    parameters = sum(parameter.numel() for parameter in unet.parameters())
    print(
        f"{len(train_data)} images to train on, {len(held_out_data)} held out ({data.name}); "
        f"{parameters:,} parameters; publishing {model} to {arguments.store}"
    )

    def publish(step: int, ema: PowerEma) -> None:
        loss = held_out.loss(as_eps_network(ema.network))
        checkpoint = publish_checkpoint(
            store,
            model,
            ema.network,
            schedule,
            data,
            step=step,
            metrics={"held_out_loss": loss, **baseline_losses},
            recipe=recipe,
        )
        tqdm.write(f"published {model}/{checkpoint.version}  held-out loss {loss:.4f}")

    with tqdm(total=100, unit="%", bar_format="{l_bar}{bar}| {elapsed}<{remaining}{postfix}") as bar:

        def after_step(report: StepReport, ema: PowerEma) -> None:
            before = bar.n
            bar.n = round(100 * report.progress, 1)
            bar.set_postfix_str(f"step {report.step}, loss {report.loss:.3f}", refresh=False)
            if int(bar.n) > int(before):
                bar.refresh()
            if arguments.publish_every and report.step % arguments.publish_every == 0 and report.progress < 1:
                publish(report.step, ema)

        ema, steps = train(unet, train_data, schedule, settings, budget, after_step=after_step)

    publish(steps, ema)
    print("held-out loss, the same images and noise for each:")
    print(f"  this model             {held_out.loss(as_eps_network(ema.network)):.4f}")
    if "held_out_loss_linear" in baseline_losses:
        print(f"  best linear denoiser   {baseline_losses['held_out_loss_linear']:.4f}")
    print(f"  predicting no noise    {baseline_losses['held_out_loss_zero']:.4f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status: 1 when training or publishing failed, 130 when interrupted."""
    given = list(sys.argv[1:] if argv is None else argv)
    try:
        run(parser().parse_args(given), shlex.join(["python", "-m", "training", *given]))
    except (TrainingError, StoreError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; nothing more was published", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())

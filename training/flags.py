"""Flags of the command: one for each field of the configuration, with the field's text as its help."""

import argparse
from collections.abc import Sequence
from enum import Enum
from pathlib import Path
from typing import Any

from training.configuration import TrainingConfiguration, presets

RESUME, FRESH = "--resume", "--fresh"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(
        prog="python -m training",
        description="Train a diffusion model and publish it, so that a running worker takes it up. "
        "Each option is also a key of --config and a variable REVERIE_TRAIN_….",
        argument_default=argparse.SUPPRESS,
        allow_abbrev=False,
    )
    result.add_argument("--preset", choices=presets(), help="settings to begin with")
    result.add_argument("--config", type=Path, metavar="FILE", help="TOML with settings, above those of the preset")
    result.add_argument(
        "--like", metavar="MODEL[@VERSION]", help="take the settings of a published version in the store"
    )
    going_on = result.add_mutually_exclusive_group()
    going_on.add_argument(RESUME, action="store_true", help="go on from --state, and fail if there is none")
    going_on.add_argument(FRESH, action="store_true", help="begin anew, whatever is in --state")
    result.add_argument("--seconds", type=float, help="how long to train")
    for name, field in TrainingConfiguration.model_fields.items():
        flag = f"--{name.replace('_', '-')}"
        text = (field.description or "").replace("%", "%%")
        default = field.default
        if isinstance(default, bool):
            result.add_argument(flag, action=argparse.BooleanOptionalAction, help=text)
            continue
        if default is not None and default != ():
            shown = default.value if isinstance(default, Enum) else default
            text += f" (default: {shown})"
        result.add_argument(flag, metavar=name.rsplit("_", 1)[-1].upper(), help=text)
    return result


def given_settings(arguments: argparse.Namespace) -> dict[str, Any]:
    """The fields that flags were given for; the values are text that validation reads."""
    given = {name: value for name, value in vars(arguments).items() if name in TrainingConfiguration.model_fields}
    if "seconds" in arguments:
        given["minutes"] = arguments.seconds / 60
    return given


def parse(argv: Sequence[str]) -> argparse.Namespace:
    return parser().parse_args(list(argv))


def said_again(argv: Sequence[str]) -> list[str]:
    """What makes the same run, wherever it stands: begun by it, or gone on with after a stop."""
    return [argument for argument in argv if argument not in (RESUME, FRESH)]

"""The `reverie` command."""

import argparse
import os
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from service.client import Client, ReverieError
from service.client.connection import DEFAULT_URL, KEY_VARIABLE, URL_VARIABLE
from service.launcher import key_command
from service.launcher.command_errors import CommandError
from service.launcher.generate import generate
from service.launcher.replay import add_receipt_commands
from service.launcher.request_options import add_request_options
from service.launcher.up import PYTHON, UpSettings, up
from worker.contract import ModelInfo, Takes
from worker.contract.environment import SettingsError

STORE_COMMANDS = {
    "import": "import a directory that diffusers saved, or one .safetensors file, into the store",
    "import-lora": "import a LoRA's .safetensors file into the store",
    "promote": "make a version of the store current, an older one too",
    "verify": "check every byte of the store, of a model or of one version",
}
TRAINING_COMMANDS = {
    "train": ("training", "train a model and publish it; see `reverie train --help`"),
    "train-autoencoder": ("training.autoencoder", "train a KL autoencoder to train latent models with"),
    "evaluate": ("training.evaluate", "measure how good a published version is"),
    "compare": ("training.compare", "draw the same seeds from two versions, side by side"),
}
"""Command → its module and what it does."""
EXIT_ERROR = 1
EXIT_INTERRUPTED = 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code. A failure is one line on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Before argparse: all options of these commands, --help included, belong to the package that runs them.
    if arguments[:1] and arguments[0] in TRAINING_COMMANDS:
        os.execv(PYTHON, [PYTHON, "-m", TRAINING_COMMANDS[arguments[0]][0], *arguments[1:]])
    if arguments[:1] and arguments[0] in STORE_COMMANDS:
        os.execv(PYTHON, [PYTHON, "-m", "worker.store", *arguments])
    options = _parser().parse_args(arguments)
    try:
        return int(options.run(options))
    except (CommandError, SettingsError, ReverieError) as error:
        print(f"reverie: {error}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="reverie", description="Serve a trained diffusion model over HTTP.")
    parser.add_argument("--version", action="version", version=f"reverie {version('reverie')}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "up",
        help="run the queue, a worker and the gateway until Ctrl-C",
        description="Run an embedded Valkey (or use REVERIE_REDIS_URL), a worker and the gateway as child processes; "
        "the one that dies is started again. Every setting is also an environment variable.",
    )
    default = UpSettings.model_fields
    serve.add_argument("--host", help=f"REVERIE_HOST: address to listen on (default {default['host'].default})")
    serve.add_argument("--port", help=f"REVERIE_PORT: 0 takes any free one (default {default['port'].default})")
    serve.add_argument("--store", help="REVERIE_STORE: directory of checkpoints (default: the bundled models)")
    serve.add_argument(
        "--data-dir",
        help=f"REVERIE_DATA_DIR: where the embedded Valkey keeps its data (default {default['data_dir'].default} here)",
    )
    serve.add_argument(
        "--workers",
        metavar="N",
        help="REVERIE_WORKERS: how many, each with a GPU or a share of the cores; auto: one for each GPU (default 1)",
    )
    serve.add_argument("--draw", type=Path, metavar="DIR", help="draw one image into DIR when ready")
    serve.set_defaults(run=_up)

    draw = commands.add_parser("generate", help="draw images with a running gateway and save them")
    _add_url(draw)
    add_request_options(draw)
    draw.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where the images go (default: here)")
    draw.add_argument("--json", action="store_true", default=False, help="print the job, and where its images are")
    draw.set_defaults(run=generate)

    add_receipt_commands(commands, _add_url)

    models = commands.add_parser("models", help="list what a running gateway can draw with")
    _add_url(models)
    models.add_argument("name", nargs="?", help="list this model's versions, oldest first; * serves")
    models.set_defaults(run=_models)

    key_command.add_parser(commands)
    for name, (_, text) in TRAINING_COMMANDS.items():
        commands.add_parser(name, add_help=False, help=text)
    for name, what in STORE_COMMANDS.items():
        commands.add_parser(name, add_help=False, help=what)
    return parser


def _add_url(parser: argparse.ArgumentParser) -> None:
    fallback = os.environ.get(URL_VARIABLE) or DEFAULT_URL
    text = f"the gateway's address, also {URL_VARIABLE} (default %(default)s); its key is {KEY_VARIABLE}"
    parser.add_argument("--url", default=fallback, help=text)


def _up(options: argparse.Namespace) -> int:
    given = {
        name: value
        for name in ("host", "port", "store", "data_dir", "workers")
        if (value := getattr(options, name)) is not None
    }
    return up(UpSettings.read(**given), draw_into=options.draw)


def _models(options: argparse.Namespace) -> int:
    with Client(options.url) as client:
        if options.name is not None:
            _show_versions(client.model(options.name))
            return 0
        catalogue = client.models()
    for model in catalogue.models:
        mark = "*" if model.name == catalogue.default else " "
        print(
            f"{mark} {model.name}  {model.version or 'nothing loaded'}  {model.width}x{model.height}  {_takes(model)}"
        )
        if model.reload_error:
            print(f"    not serving the current version: {model.reload_error}")
    return 0


def _show_versions(model: ModelInfo) -> None:
    for each in model.versions:
        mark = "*" if each.version == model.version else " "
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in sorted(each.metrics.items()))
        created_at = each.created_at.strftime("%Y-%m-%dT%H:%M:%SZ")
        print(f"{mark} {each.version}  {created_at}  {metrics}".rstrip())
    if model.reload_error:
        print(f"    not serving the current version: {model.reload_error}")


def _takes(model: ModelInfo) -> str:
    if model.takes is Takes.PROMPT:
        return "prompt"
    shown = ", ".join(model.labels[:12])
    more = f", ... ({len(model.labels)})" if len(model.labels) > 12 else ""
    return f"labels: {shown}{more}" if model.labels else "no labels"


if __name__ == "__main__":
    sys.exit(main())

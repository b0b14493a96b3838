"""The `reverie` command."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from service.launcher.command_errors import CommandError
from service.launcher.http_client import GatewayClient
from service.launcher.up import PYTHON, UpSettings, up
from worker.contract import PROMPT_GUIDANCE, SamplerName, Takes
from worker.contract.environment import SettingsError

STORE_COMMANDS = {
    "import": "import a directory that diffusers saved into the store",
    "promote": "make a version of the store current, an older one too",
    "verify": "check every byte of the store, of a model or of one version",
}
TRAINING_COMMANDS = {
    "train": ("training", "train a model and publish it; see `reverie train --help`"),
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
    except (CommandError, SettingsError) as error:
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
    serve.add_argument("--store", help="REVERIE_STORE: directory of checkpoints (default: the bundled model)")
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
    draw.add_argument("--model", help="default: the gateway's default model")
    draw.add_argument("--version", help="default: the model's current version; see `reverie models NAME`")
    draw.add_argument("--label", help="name or index of the class to draw (default: any)")
    draw.add_argument("--prompt", help="what to draw, for a model that takes a prompt; see `reverie models`")
    draw.add_argument("--negative-prompt", help="what guidance leads away from")
    draw.add_argument("--steps", type=int, default=50, help="U-Net runs for each image (default 50)")
    draw.add_argument("--seed", type=int, help="seed of the first image (default: the gateway draws one)")
    draw.add_argument("--batch", type=int, default=1, help="how many images (default 1)")
    draw.add_argument("--sampler", choices=[name.value for name in SamplerName], default=SamplerName.DDIM.value)
    draw.add_argument(
        "--guidance-scale",
        type=float,
        help=f"classifier-free guidance (default {PROMPT_GUIDANCE:g} with --prompt, else 1)",
    )
    draw.add_argument("--out", type=Path, default=Path(), metavar="DIR", help="where the images go (default: here)")
    draw.set_defaults(run=_generate)

    models = commands.add_parser("models", help="list what a running gateway can draw with")
    _add_url(models)
    models.add_argument("name", nargs="?", help="list this model's versions, oldest first; * serves")
    models.set_defaults(run=_models)

    for name, (_, text) in TRAINING_COMMANDS.items():
        commands.add_parser(name, add_help=False, help=text)
    for name, what in STORE_COMMANDS.items():
        commands.add_parser(name, add_help=False, help=what)
    return parser


def _add_url(parser: argparse.ArgumentParser) -> None:
    fallback = os.environ.get("REVERIE_URL", "http://127.0.0.1:8000")
    parser.add_argument("--url", default=fallback, help="the gateway's address, also REVERIE_URL (default %(default)s)")


def _up(options: argparse.Namespace) -> int:
    given = {
        name: value
        for name in ("host", "port", "store", "data_dir", "workers")
        if (value := getattr(options, name)) is not None
    }
    return up(UpSettings.read(**given), draw_into=options.draw)


def _generate(options: argparse.Namespace) -> int:
    request = {
        "model": options.model,
        "version": options.version,
        # A label made of digits goes as an index, anything else as a name.
        "class_label": int(options.label) if (options.label or "").isdecimal() else options.label,
        "prompt": options.prompt,
        "negative_prompt": options.negative_prompt,
        "steps": options.steps,
        "seed": options.seed,
        "batch": options.batch,
        "sampler": options.sampler,
        "guidance_scale": options.guidance_scale,
    }
    with GatewayClient(options.url) as gateway:
        job = gateway.submit({name: value for name, value in request.items() if value is not None})
        try:
            done = gateway.wait(job, on_progress=_show_progress)
        except KeyboardInterrupt:
            gateway.cancel(job)
            raise
        finally:
            _end_progress()
        for warning in done.get("warnings", ()):
            print(f"warning: {warning}", file=sys.stderr)
        for path in gateway.save_images(done, options.out):
            print(path)
    return 0


def _show_progress(job: Mapping[str, Any]) -> None:
    if sys.stderr.isatty():
        progress = job["progress"]
        print(f"\r{job['status']} {progress['step']}/{progress['steps']} ", end="", file=sys.stderr, flush=True)


def _end_progress() -> None:
    if sys.stderr.isatty():
        print("\r\033[K", end="", file=sys.stderr, flush=True)


def _models(options: argparse.Namespace) -> int:
    with GatewayClient(options.url) as gateway:
        if options.name is not None:
            _show_versions(gateway.model(options.name))
            return 0
        catalogue = gateway.models()
    for model in catalogue["models"]:
        mark = "*" if model["name"] == catalogue.get("default") else " "
        size = f"{model['width']}x{model['height']}"
        print(f"{mark} {model['name']}  {model['version'] or 'nothing loaded'}  {size}  {_takes(model)}")
        if model.get("reload_error"):
            print(f"    not serving the current version: {model['reload_error']}")
    return 0


def _show_versions(model: Mapping[str, Any]) -> None:
    for each in model["versions"]:
        mark = "*" if each["version"] == model["version"] else " "
        metrics = "  ".join(f"{name} {value:.4g}" for name, value in sorted(each["metrics"].items()))
        print(f"{mark} {each['version']}  {each['created_at']}  {metrics}".rstrip())
    if model.get("reload_error"):
        print(f"    not serving the current version: {model['reload_error']}")


def _takes(model: Mapping[str, Any]) -> str:
    if model.get("takes") == Takes.PROMPT:
        return "prompt"
    labels: Sequence[str] = model["labels"]
    shown = ", ".join(labels[:12])
    more = f", ... ({len(labels)})" if len(labels) > 12 else ""
    return f"labels: {shown}{more}" if labels else "no labels"


if __name__ == "__main__":
    sys.exit(main())

"""`python -m worker.store`: list, verify, promote, prune and import checkpoints. Needs no running service."""

import argparse
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import ValidationError

from worker.contract import MAX_PROMPT_CHARACTERS
from worker.store.bundled import bundled_store_path
from worker.store.errors import BadCheckpoint, StoreError
from worker.store.lora_import import import_lora
from worker.store.lora_store import LoraStore
from worker.store.manifest import MAX_EXAMPLE_PROMPTS, RequestDefaults, split_example_prompts
from worker.store.model_store import ModelStore
from worker.store.pipeline_import import import_pipeline

WRITING = frozenset({"promote", "prune", "import", "import-lora"})


def parser(default_store: Path) -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m worker.store", description="Manage the checkpoints on disk.")
    where = argparse.ArgumentParser(add_help=False)
    for each, default in ((result, default_store), (where, argparse.SUPPRESS)):
        each.add_argument(
            "--store", type=Path, default=default, help="also REVERIE_STORE; default: the bundled models, read-only"
        )
    commands = result.add_subparsers(dest="command", required=True)
    commands.add_parser("list", parents=[where], help="models and versions; * is current")
    verify = commands.add_parser("verify", parents=[where], help="check every byte of a version, a model or all models")
    verify.add_argument("model", nargs="?", help="default: all models")
    verify.add_argument("version", nargs="?", help="default: all versions")
    promote = commands.add_parser("promote", parents=[where], help="make a version current, an older one too")
    promote.add_argument("model")
    promote.add_argument("version")
    prune = commands.add_parser(
        "prune",
        parents=[where],
        help="remove old versions, never the current one",
        description="Remove old versions, never the current one. Jobs are not considered: for a store that nothing "
        "serves. A worker with REVERIE_KEEP_VERSIONS removes versions that no job needs.",
    )
    prune.add_argument("model")
    prune.add_argument("--keep", type=int, required=True)
    take = commands.add_parser(
        "import", parents=[where], help="import a directory that diffusers saved, or one file in the original layout"
    )
    take.add_argument("source", type=Path, metavar="DIRECTORY_OR_FILE")
    take.add_argument(
        "--config",
        type=Path,
        help="for a file: a diffusers directory of the same architecture, whose weights are not read",
    )
    take.add_argument("--name", required=True, help="name of the model")
    take.add_argument("--labels", help="names of the classes, separated by commas")
    take.add_argument("--null-label", type=int, help='row of the class embedding that means "no class"')
    take.add_argument("--step", type=int, default=0, help="training step of the weights")
    take.add_argument("--variant", help="variant of the weights, for example fp16; default: those without one")
    take.add_argument(
        "--safety-checker", action="store_true", help="take it along, for workers with REVERIE_SAFETY_CHECKER=on"
    )
    take.add_argument(
        "--refiner",
        type=Path,
        metavar="DIRECTORY",
        help="of Stable Diffusion XL: the refiner that ends its chains; the model's own VAE decodes",
    )
    take.add_argument("--request-sampler", metavar="SAMPLER", help="what requests get that name none; default: its own")
    take.add_argument("--request-steps", metavar="N", help="the same for steps")
    take.add_argument(
        "--request-guidance-scale", metavar="W", help="the same for guidance, of requests with a condition"
    )
    take.add_argument("--example-prompts", metavar="A|B|…", help="to try it with, the best first; the page shows them")
    lora = commands.add_parser(
        "import-lora", parents=[where], help="import a LoRA's .safetensors file, in diffusers' layout or kohya's"
    )
    lora.add_argument("file", type=Path)
    lora.add_argument("--name", required=True, help="what requests call it")
    lora.add_argument(
        "--for", dest="model", metavar="MODEL", help="the only model to offer it for; default: all it fits"
    )
    return result


def run(options: argparse.Namespace) -> None:
    """Raises StoreError."""
    if options.command in WRITING and options.store.resolve() == bundled_store_path():
        raise StoreError("the bundled models are read-only: say which store with --store or REVERIE_STORE")
    store = ModelStore(options.store)
    match options.command:
        case "list":
            for model in store.models():
                try:
                    current = store.current(model)
                except StoreError as error:
                    current = None
                    print(f"{model}: {error}", file=sys.stderr)
                for version in store.versions(model):
                    print(f"{'*' if version == current else ' '} {model} {version}")
        case "verify":
            verify(store, options.model, options.version)
        case "promote":
            store.promote(options.model, options.version)
            print(f"{options.model}/{options.version} is current")
        case "prune":
            if options.keep < 0:
                raise StoreError(f"need --keep of at least 0, got {options.keep}")
            for version in store.prune(options.model, options.keep):
                print(f"removed {options.model}/{version}")
        case "import":
            defaults = _request_defaults(options)
            prompts = _example_prompts(options.example_prompts or "")
            with _as_directory(options.source, options.config) as directory:
                checkpoint = import_pipeline(
                    store,
                    directory,
                    options.name,
                    labels=options.labels.split(",") if options.labels else None,
                    null_label=options.null_label,
                    step=options.step,
                    variant=options.variant,
                    safety_checker=options.safety_checker,
                    refiner=options.refiner,
                    request_defaults=defaults,
                    example_prompts=prompts,
                    make_current=False,
                    source=options.source.name,
                )
            manifest = checkpoint.manifest
            asked, kept = (defaults, prompts), (manifest.request_defaults, manifest.example_prompts)
            if asked not in (kept, (RequestDefaults(), [])):
                raise StoreError(
                    f"{checkpoint.model}/{checkpoint.version} was there already, and a version keeps its defaults and "
                    "example prompts: import it under another --name or --step"
                )
            store.promote(checkpoint.model, checkpoint.version)
            if checkpoint.manifest.absent:
                print(f"not in the pipeline: {', '.join(checkpoint.manifest.absent)}")
            if checkpoint.manifest.skipped:
                print(f"not taken, nothing runs it: {', '.join(checkpoint.manifest.skipped)}")
            print(f"{checkpoint.model}/{checkpoint.version} is current")
        case "import-lora":
            taken, models = import_lora(store, options.file, options.name, options.model)
            print(f"{options.name} changes {', '.join(taken.manifest.components)}; it fits {', '.join(models)}")


def _request_defaults(options: argparse.Namespace) -> RequestDefaults:
    """Raises StoreError, naming what is wrong."""
    given = {name: getattr(options, f"request_{name}") for name in RequestDefaults.model_fields}
    try:
        return RequestDefaults.model_validate_strings({name: value for name, value in given.items() if value})
    except ValidationError as error:
        (first, *_) = error.errors()
        option = f"--request-{str(first['loc'][0]).replace('_', '-')}"
        raise StoreError(f"{option}: {first['msg']}, got {first['input']!r}") from None


def _example_prompts(given: str) -> list[str]:
    """Raises StoreError."""
    prompts = split_example_prompts(given)
    if len(prompts) > MAX_EXAMPLE_PROMPTS or any(len(prompt) > MAX_PROMPT_CHARACTERS for prompt in prompts):
        raise StoreError(
            f"--example-prompts: need at most {MAX_EXAMPLE_PROMPTS} of at most {MAX_PROMPT_CHARACTERS} characters, got "
            f"{len(prompts)} of up to {max(map(len, prompts))}"
        )
    return prompts


@contextmanager
def _as_directory(source: Path, config: Path | None) -> Iterator[Path]:
    """The source itself, or a file converted into a directory that is there for a while.

    Raises:
        StoreError: a file that can't be converted, and why.
    """
    if not source.is_file():
        yield source
        return
    if source.suffix != ".safetensors":
        raise StoreError(f"need a .safetensors file or a directory, got {str(source)!r}: other formats can run code")
    if config is None:
        raise StoreError("a single file holds weights alone: say with --config where its configurations are")
    with TemporaryDirectory() as folder:
        # In a process of its own: the store loads no torch.
        command = [sys.executable, "-m", "worker.models.single_file", str(source), str(config), folder]
        ended = subprocess.run(command, stderr=subprocess.PIPE, text=True, check=False)
        if ended.returncode:
            raise StoreError((ended.stderr.strip().splitlines() or ["the conversion ended without a word"])[-1])
        yield Path(folder)


def verify(store: ModelStore, model: str | None, version: str | None) -> None:
    """Check one version, all of a model or all of the store, and print the result for each.

    Raises:
        StoreError: at least one is bad; the others were checked all the same.
    """
    bad = 0
    for name in [model] if model else store.models():
        for each in [version] if version else store.versions(name):
            try:
                store.verify(name, each)
                print(f"{name}/{each} is whole")
            except BadCheckpoint as error:
                bad += 1
                print(error, file=sys.stderr)
    loras = LoraStore(store.root)
    for name in [] if model else loras.names():
        for sha256 in loras.hashes(name):
            try:
                loras.verify(loras.find(name, sha256))
                print(f"LoRA {name} {sha256[:8]} is whole")
            except StoreError as error:
                bad += 1
                print(error, file=sys.stderr)
    if bad:
        raise StoreError(f"{bad} {'version is' if bad == 1 else 'versions are'} bad")


def main(argv: Sequence[str] | None = None, environment: Mapping[str, str] = os.environ) -> int:
    """Returns the exit status; 1 with one line of reason."""
    default_store = Path(environment.get("REVERIE_STORE") or bundled_store_path())
    try:
        run(parser(default_store).parse_args(argv))
    except StoreError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""`reverie replay` and `reverie receipt`: draw a receipt again, check its signature, make a key."""

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.client import Client
from service.launcher.command_errors import OutputError, ReceiptError, ReplayFailed
from service.launcher.generate import follow, save
from service.launcher.progress_line import ProgressLine
from service.launcher.receipt_sources import read_receipt
from service.launcher.replayed_pictures import add_options, folder_of, given_pictures, require_all
from worker.contract.receipts import SIGNATURE, canonical, parsed
from worker.contract.signing import SignatureError, new_key, verify

if TYPE_CHECKING:
    from service.pictures import Picture

EXIT_SAME = 0
EXIT_DIFFERENT = 3


def replay(options: argparse.Namespace) -> int:
    """Draw the receipt's images again; the exit code says whether all are the same to the bit."""
    receipt = read_receipt(options.receipt)
    if SIGNATURE in receipt:
        check_signature(receipt, None, options.receipt)
    pictures = given_pictures(receipt, options)
    if options.alone or options.store:
        require_all(receipt, options)
        again = drawn_alone(receipt, pictures, options)
    else:
        again = drawn_by_gateway(receipt, pictures, options)
    hashes = {image["index"]: image["sha256"] for image in again["images"]}
    images = [
        {"index": image["index"], "seed": image["seed"], "same": hashes.get(image["index"]) == image["sha256"]}
        for image in receipt["images"]
    ]
    same = all(image["same"] for image in images)
    differences = [] if same else differing(receipt, again)
    if options.json:
        print(json.dumps({"same": same, "images": images, "differences": differences, "receipt": again}))
    else:
        for image in images:
            print(f"image {image['index']}, seed {image['seed']}: {'the same' if image['same'] else 'DIFFERENT'}")
        for line in differences:
            print(f"  {line}")
    return EXIT_SAME if same else EXIT_DIFFERENT


def drawn_by_gateway(
    receipt: Mapping[str, Any], pictures: "list[Picture]", options: argparse.Namespace
) -> dict[str, Any]:
    line = ProgressLine(sys.stderr)
    with Client(options.url) as client:
        for picture in pictures:
            client.upload(picture.png)
        job = client.redraw(receipt["request"])
        try:
            done = follow(client, job, line)
        except KeyboardInterrupt:
            client.cancel(job)
            raise
        finally:
            line.end()
        if options.out is not None:
            save(client.pictures(done), options.out)
        if done.links.receipt is None:
            raise ReplayFailed(f"{options.url} drew it and writes no receipts")
        return parsed(client.fetch(done.links.receipt))


def drawn_alone(receipt: Mapping[str, Any], pictures: "list[Picture]", options: argparse.Namespace) -> dict[str, Any]:
    """By an engine in a process of its own."""
    command = [sys.executable, "-m", "worker.replay"]
    command += ["--store", str(options.store)] if options.store is not None else []
    command += ["--out", str(options.out)] if options.out is not None else []
    with folder_of(pictures) as folder:
        command += ["--pictures", str(folder)]
        done = subprocess.run(command, input=canonical(receipt), capture_output=True)
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    if done.returncode != 0:
        raise ReplayFailed(f"it can't be drawn again: {lines[-1] if lines else f'exit code {done.returncode}'}")
    return parsed(done.stdout)


def differing(receipt: Mapping[str, Any], again: Mapping[str, Any]) -> list[str]:
    """What was another thing when it was drawn again, which may be why the pixels are."""
    found = []
    for name in ("request", "weights_sha256", "components", "plan_sha256", "computation"):
        then, now = receipt[name], again[name]
        if isinstance(then, dict) and isinstance(now, dict):
            keys = sorted(key for key in then.keys() | now.keys() if then.get(key) != now.get(key))
            found += [f"{name}.{key}: {then.get(key)} then, {now.get(key)} now" for key in keys]
        elif then != now:
            found.append(f"{name}: {then} then, {now} now")
    return found


def verify_receipt(options: argparse.Namespace) -> int:
    receipt = read_receipt(options.receipt)
    print(f"signed by {check_signature(receipt, options.key, options.receipt)}")
    return 0


def show_receipt(options: argparse.Namespace) -> int:
    print(json.dumps(read_receipt(options.receipt), indent=2, ensure_ascii=False))
    return 0


def new_signing_key(options: argparse.Namespace) -> int:
    try:
        public_key = new_key(options.path)
    except OSError as error:
        raise OutputError(f"can't write the key {options.path}: {error.strerror}") from error
    print(public_key)
    print(f"set REVERIE_SIGNING_KEY={options.path} for the worker; give others the line above", file=sys.stderr)
    return 0


def check_signature(receipt: Mapping[str, Any], key: str | None, source: str) -> str:
    try:
        return verify(receipt, key)
    except SignatureError as error:
        raise ReceiptError(f"{source}: {error}") from error


def add_receipt_commands(commands: "argparse._SubParsersAction[argparse.ArgumentParser]", url: Any) -> None:
    """
    Args:
        url: adds the option of the gateway's address to a parser.
    """
    where = "a file, a PNG or WebP that carries it, an address, or - for standard input"
    again = commands.add_parser(
        "replay",
        help="draw a receipt's images again and compare them",
        description=f"Exit code 0: all images are the same to the bit; {EXIT_DIFFERENT}: some are not.",
    )
    again.add_argument("receipt", help=where)
    url(again)
    again.add_argument("--alone", action="store_true", help="draw here, without a gateway, from the bundled models")
    again.add_argument("--store", type=Path, metavar="DIR", help="draw here, without a gateway, from this store")
    add_options(again)
    again.add_argument("--out", type=Path, metavar="DIR", help="keep the images there")
    again.add_argument("--json", action="store_true", help="print what was found as JSON")
    again.set_defaults(run=replay)

    parts = commands.add_parser("receipt", help="show receipts, check their signatures, make a key").add_subparsers(
        required=True, metavar="COMMAND"
    )
    shown = parts.add_parser("show", help="print a receipt")
    shown.add_argument("receipt", help=where)
    shown.set_defaults(run=show_receipt)
    checked = parts.add_parser("verify", help="check a receipt's signature, offline")
    checked.add_argument("receipt", help=where)
    checked.add_argument("--key", help="the public key that must have signed it (default: any)")
    checked.set_defaults(run=verify_receipt)
    made = parts.add_parser("new-key", help="make a key to sign receipts with")
    made.add_argument("path", type=Path, help="the file for the private key; must not be there yet")
    made.set_defaults(run=new_signing_key)

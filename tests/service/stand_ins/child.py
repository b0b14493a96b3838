"""A child process that notes its life in a journal: `child.py NAME JOURNAL [option...]`.

Options: `ignore-term`, `exit=N` (ends at once), `late-ready=FILE` (creates FILE once it runs), `device` (notes
REVERIE_DEVICE), `http` (answers /readyz, /models and POST /generate on REVERIE_HOST:REVERIE_PORT), `asked` (notes the
options that begin with two dashes).
"""

import json
import os
import signal
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import FrameType


def main() -> None:
    name, journal, *options = sys.argv[1:]

    def note(what: str) -> None:
        with open(journal, "a") as file:  # one short write in append mode: lines of several processes don't mix
            file.write(f"{name} {what} {os.getpid()}\n")

    def on_term(_number: int, _frame: FrameType | None) -> None:
        note("asked-to-end")
        if "ignore-term" not in options:
            os._exit(0)

    signal.signal(signal.SIGTERM, on_term)
    note("started")
    if "asked" in options:
        for option in options:
            if option.startswith("--"):
                note(option.replace(" ", "_"))
    for option in options:
        key, _, value = option.partition("=")
        if key == "exit":
            sys.exit(int(value))
        if key == "device":
            note(os.environ.get("REVERIE_DEVICE", "any-device"))
        if key == "late-ready":
            Path(value).touch()
        if key == "http":
            address = (os.environ["REVERIE_HOST"], int(os.environ["REVERIE_PORT"]))
            threading.Thread(target=ThreadingHTTPServer(address, Answers).serve_forever, daemon=True).start()
    while True:
        signal.pause()


MODELS = {
    "default": "emoji",
    "memory": {},
    "models": [
        {
            "name": name,
            "version": None,
            "versions": [],
            "labels": [],
            "width": 32,
            "height": 32,
            "channels": 3,
            "num_train_timesteps": 1000,
            "prediction_type": "epsilon",
            "samplers": ["ddim"],
            "example_prompts": examples,
        }
        for name, examples in (("digits", []), ("emoji", ["it's a blue apple", "cat face"]))
    ],
}


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(200 if self.path in ("/readyz", "/models") else 404, MODELS if self.path == "/models" else {})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        if self.headers["content-type"] != "application/json":
            self._answer(415, {})
        else:
            self._answer(202 if self.path == "/generate" else 404, body)

    def _answer(self, status: int, body: object) -> None:
        content = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: object) -> None:
        pass


if __name__ == "__main__":
    main()

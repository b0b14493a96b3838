"""A child process that notes its life in a journal: `child.py NAME JOURNAL [option...]`.

Options: `ignore-term`, `exit=N` (ends at once), `late-ready=FILE` (creates FILE once it runs), `device` (notes
REVERIE_DEVICE), `http` (answers /readyz and POST /generate on REVERIE_HOST:REVERIE_PORT).
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


class Answers(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer(200 if self.path == "/readyz" else 404, {})

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

"""`python -m service`: the gateway under uvicorn, set up by REVERIE_ variables."""

import errno
import socket
import sys

from service.app import connect, create_app
from service.server import GatewayServer
from service.settings import Settings
from worker.contract.environment import SettingsError
from worker.contract.logs import configure_logs
from worker.results.files import ResultsAway

EXIT_PORT = 1
EXIT_SETTINGS = 2
GRACE_S = 5
"""How long requests in flight may take to end after SIGTERM."""


class CannotListen(Exception):
    """The address can't be bound; its text is the one line for the user."""


def listen(settings: Settings) -> socket.socket:
    """A bound socket. Bound here because uvicorn would report a taken port with a traceback."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            settings.host, settings.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
    except OSError as error:
        reason = "is taken" if error.errno == errno.EADDRINUSE else f"can't be listened on: {error.strerror}"
        raise CannotListen(
            f"port {settings.port} on {settings.host} {reason}; set REVERIE_PORT or REVERIE_HOST"
        ) from error
    return listener


def main() -> int:
    try:
        settings = Settings.read()
        listener = listen(settings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    except CannotListen as error:
        print(error, file=sys.stderr)
        return EXIT_PORT
    configure_logs(settings, "gateway")
    try:
        app = create_app(settings, connect(settings))
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    except ResultsAway as error:
        print(f"REVERIE_RESULTS={settings.results}: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    GatewayServer(app, grace_s=GRACE_S).run(sockets=[listener])
    return 0


if __name__ == "__main__":
    sys.exit(main())

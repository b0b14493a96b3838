"""Runs child processes as one: starts them in order, restarts the one that dies, stops them in reverse order."""

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from types import FrameType

from service.launcher.command_errors import ChildError
from service.launcher.restart_policy import RestartPolicy

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
EXIT_SETTINGS_WRONG = 2
"""Exit code of a child whose settings are wrong; restarting it would change nothing."""
EXIT_FORCED = 130
ONE_PRESS_S = 0.5
"""Stop signals this close together are one: `timeout` and other wrappers forward what the terminal sent to all."""
READY_TIMEOUT_S = 3600.0
"""A large model takes a CPU minutes to load and to compare with itself; what fails to start ends by itself."""
TELL_EVERY_S = 60.0
"""What is waited for."""
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Service:
    """One child process: how to start it, how to know that it is up, how to end it."""

    name: str
    command: tuple[str, ...]
    env: Mapping[str, str] | None = None
    """None: the supervisor's own environment."""
    pass_fds: tuple[int, ...] = ()
    log_path: Path | None = None
    """Where its output is appended; None: the supervisor's own output."""
    is_ready: Callable[[], bool] = lambda: True
    """Asked until true before the next service is started."""
    ready_timeout_s: float = 60.0
    stop_grace_s: float = 10.0
    """From SIGTERM to SIGKILL."""
    restart: bool = True
    """False: it does one thing and ends."""

    def what_is_missing(self) -> str | None:
        """None once it is ready."""
        return None if self.is_ready() else f"{self.name} does not answer"


@dataclass
class _Child:
    service: Service
    policy: RestartPolicy
    process: subprocess.Popen[bytes] | None = None
    started_s: float = 0.0
    start_due_s: float | None = field(default=None)

    @property
    def running(self) -> bool:
        return self.process is not None


class _StopAskedError(Exception):
    """A stop signal arrived."""


class Supervisor:
    """Owns its children. Use it from the main thread: it takes the process's signals while it runs.

    Each child is the leader of a process group of its own, so a Ctrl-C in the terminal reaches the supervisor alone and
    the order of ending is kept. On Linux the kernel kills every child when the supervisor dies, however it dies
    (PR_SET_PDEATHSIG); elsewhere a supervisor killed with SIGKILL leaves its children running.
    """

    def __init__(
        self,
        services: Sequence[Service],
        *,
        say: Callable[[str], None],
        policy: Callable[[], RestartPolicy] = RestartPolicy,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._new_policy = policy
        self._children = [_Child(service, policy()) for service in services]
        self._say = say
        self._clock = clock
        self._signals: SimpleQueue[int] = SimpleQueue()
        self._started = False
        self._stopped = False

    def run(
        self,
        *,
        what_is_missing: Callable[[], str | None] = lambda: None,
        ready_timeout_s: float = READY_TIMEOUT_S,
        on_ready: Callable[[], Service | None] = lambda: None,
    ) -> int:
        """Start everything, wait until `what_is_missing` returns None, call `on_ready` and run what it returns beside
        the rest; then keep all of it running until a stop signal.

        Before that a child that exits by itself is an error: it would fail to start again. Later it is restarted; one
        that is killed is restarted at any time.

        Returns the exit code: 0 after an ordinary stop, 130 when a second signal cut it short. Raises `ChildError`
        when a child is given up. Either way no child is left.
        """
        with self._taking_signals():
            try:
                for child in list(self._children):
                    self._start(child)
                    service = child.service
                    self._wait(service.what_is_missing, service.ready_timeout_s)
                self._wait(what_is_missing, ready_timeout_s)
                self._started = True
                extra = on_ready()
                if extra is not None:
                    self._children.append(_Child(extra, self._new_policy()))
                    self._start(self._children[-1])
                while True:
                    self._tick(timeout_s=3600.0)
            except _StopAskedError:
                self._say("stopping; Ctrl-C again ends everything now")
                return self._stop()
            except BaseException:
                self._stop()
                raise

    def _wait(self, what_is_missing: Callable[[], str | None], timeout_s: float) -> None:
        began = told = self._clock()
        while (missing := what_is_missing()) is not None:
            now = self._clock()
            if now >= began + timeout_s:
                raise ChildError(f"not ready within {timeout_s:g} s: {missing}")
            if now >= told + TELL_EVERY_S:
                self._say(f"not ready after {now - began:.0f} s, waiting: {missing}")
                told = now
            self._tick(timeout_s=0.1)

    def _tick(self, timeout_s: float) -> None:
        """Wait for a signal, a death or the time of a restart, at most `timeout_s`, and act on it."""
        due = [child.start_due_s for child in self._children if child.start_due_s is not None]
        if due:
            timeout_s = min(timeout_s, max(0.0, min(due) - self._clock()))
        if self._next_signal(timeout_s) in STOP_SIGNALS:
            raise _StopAskedError
        for child in list(self._children):
            if child.process is not None and child.process.poll() is not None:
                self._died(child, child.process.returncode)
            if child.start_due_s is not None and self._clock() >= child.start_due_s:
                self._start(child)

    def _next_signal(self, timeout_s: float) -> int | None:
        try:
            return self._signals.get(timeout=timeout_s) if timeout_s > 0 else self._signals.get_nowait()
        except Empty:
            return None

    def _start(self, child: _Child) -> None:
        service = child.service
        child.start_due_s = None
        child.started_s = self._clock()
        output = open(service.log_path, "ab") if service.log_path is not None else None  # noqa: SIM115 - closed below
        try:
            child.process = subprocess.Popen(
                service.command,
                env=service.env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if output is not None else None,
                pass_fds=service.pass_fds,
                process_group=0,
                preexec_fn=_die_with_parent(os.getpid()),
            )
        except OSError as error:
            raise ChildError(f"can't start {service.name}: {service.command[0]}: {error.strerror}") from error
        finally:
            if output is not None:
                output.close()

    def _died(self, child: _Child, returncode: int) -> None:
        child.process = None
        service = child.service
        ending = _describe(returncode)
        if not service.restart:
            self._children.remove(child)
            if returncode != 0:
                self._say(f"{service.name} {ending}")
            return
        where = f"; its log is {service.log_path}" if service.log_path is not None else ""
        if returncode == EXIT_SETTINGS_WRONG:
            raise ChildError(f"{service.name} {ending}: it can't run with these settings{where}")
        if returncode >= 0 and not self._started:
            raise ChildError(f"{service.name} {ending} while everything was starting{where}")
        delay_s = child.policy.delay_s(self._clock() - child.started_s)
        if delay_s is None:
            raise ChildError(f"{service.name} {ending}, {child.policy.fast_deaths} times in a row: giving up{where}")
        self._say(f"{service.name} {ending}; starting it again in {delay_s:g} s")
        child.start_due_s = self._clock() + delay_s

    def _stop(self) -> int:
        """Stop the children one by one, the last started first; on another signal all at once."""
        forced = False
        asked_s = self._clock()
        self._stopped = True
        for child in reversed(self._children):
            if child.process is None:
                continue
            if not forced:
                child.process.send_signal(signal.SIGTERM)
                deadline = self._clock() + child.service.stop_grace_s
                while not forced and child.process.poll() is None and (left_s := deadline - self._clock()) > 0:
                    again = self._next_signal(min(left_s, 0.5)) in STOP_SIGNALS
                    forced = again and self._clock() - asked_s >= ONE_PRESS_S
                if not forced and child.process.poll() is None:
                    self._say(f"{child.service.name} did not end within {child.service.stop_grace_s:g} s; killing it")
            if forced or child.process.poll() is None:
                self._kill_all() if forced else _kill_group(child.process)
            child.process.wait()
            child.process = None
        return EXIT_FORCED if forced else 0

    def _kill_all(self) -> None:
        for child in self._children:
            if child.process is not None and child.process.poll() is None:
                _kill_group(child.process)

    @contextmanager
    def _taking_signals(self) -> Iterator[None]:
        def note(number: int, _frame: FrameType | None) -> None:
            self._signals.put(number)  # SimpleQueue.put may be called from a signal handler

        taken = [*STOP_SIGNALS, signal.SIGCHLD]
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup: it is meant to outlive its terminal
            taken.remove(signal.SIGHUP)
        before = {number: signal.signal(number, note) for number in taken}
        try:
            yield
        finally:
            for number, handler in before.items():
                # All that is left after a stop is to exit: the late twin of a signal must not turn that into a death.
                late = self._stopped and number in STOP_SIGNALS
                signal.signal(number, signal.SIG_IGN if late else handler)


def _kill_group(process: subprocess.Popen[bytes]) -> None:
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        process.kill()


def _describe(returncode: int) -> str:
    if returncode < 0:
        return f"was killed by {signal.Signals(-returncode).name}"
    return f"ended with exit code {returncode}"


def _die_with_parent(parent_pid: int) -> Callable[[], None] | None:
    """What a child runs between fork and exec so that the kernel kills it when its parent dies; None off Linux."""
    if sys.platform != "linux":
        return None
    libc = ctypes.CDLL(None, use_errno=True)

    def between_fork_and_exec() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent_pid:  # it died before the call above could count
            os._exit(1)

    return between_fork_and_exec

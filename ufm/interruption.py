"""Ctrl-C in a process of the command line: one line, exit status 130, within seconds.

Python answers Ctrl-C with a `KeyboardInterrupt` in the main thread. For a command that is not
enough. While modules are imported it is a traceback. While a compiler works it may wait for the
compiler. In a callback, such as one of the garbage collection, it is lost. So a thread watches,
which the signal wakes at once, and which ends the process when the main thread does not end it in
time.

An interrupted process ends by `os._exit`. XLA compiles in native threads of its own. Nobody can
stop or join them, and an interpreter that shuts down under them crashes.

Other programs that import the library are left to Python. A script that is interrupted prints its
traceback; where something was being compiled, one in about fifteen crashes after that, at the end
of the process. Ending it by `os._exit` would have to come after the last of the program's own exit
handlers, and Python has no such place: files and children that they clean up would be left behind.
"""

import _thread
import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from pathlib import PurePath
from typing import Any, NoReturn

__all__ = ["INTERRUPTED", "end", "expect", "say", "watch", "watch_command"]

INTERRUPTED = 130  # the exit status: 128 + SIGINT
MOMENT = 0.02  # seconds until a callback that has lost a KeyboardInterrupt is over
LOST = b"\0"  # written by the process itself, where signals write their number


def watch_command() -> None:
    """Watch this process if it runs the command `ufm`, before the imports that take long."""
    module = sys.argv[:1] == ["-m"] and not {"ufm", "-mufm"}.isdisjoint(sys.orig_argv)
    if module or PurePath(*sys.argv[:1]).stem == "ufm":
        watch()


def watch() -> None:
    """Watch this process from its main thread, unless that is done already or Ctrl-C is ignored."""
    global _watch
    possible = threading.current_thread() is threading.main_thread()
    if (
        _watch is None
        and possible
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler
    ):
        _watch = _Watch()


def expect(patience: float, words: str | None = None, again: float | None = None) -> None:
    """Set what a first Ctrl-C does from now on; a second one ends the process at once.

    Args:
        patience: Seconds that the main thread has to end by itself; 0 if there is nothing to keep.
        words: The last line if it does not end; as before if not given.
        again: Seconds after which the main thread is interrupted once more; never if not given.
    """
    if _watch is not None:
        _watch.patience, _watch.again = patience, again
        _watch.words = _watch.words if words is None else words


def say(line: str) -> None:
    """Write a line to stderr, below a line of progress that a terminal may show."""
    shown = f"ufm: {line}\n"
    with contextlib.suppress(OSError, AttributeError, ValueError):
        if sys.stderr.isatty():
            # Clears the line, and shows the cursor that a bar has hidden.
            shown = f"\r\x1b[2K\x1b[?25h{shown}"
        sys.stderr.write(shown)
        sys.stderr.flush()


def end(words: str = "") -> None:
    """Print why, and end the process if it is watched; the caller has flushed its files.

    Args:
        words: The last line; that of `expect` if not given.
    """
    if _watch is not None:
        _watch.end(words or _watch.words)
    say(words or "interrupted")


class _Watch:
    def __init__(self) -> None:
        self.patience = 0.0
        self.again: float | None = None
        self.words = "interrupted"
        self._ending = threading.Lock()
        self._own = 0  # signals that this thread has sent, and not read yet
        self._signals, self._sender = socket.socketpair()
        self._sender.setblocking(False)
        signal.set_wakeup_fd(self._sender.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGINT, self._interrupt)
        self._unraisable, sys.unraisablehook = sys.unraisablehook, self._lost
        # What is registered first runs last: from then on nothing is left to interrupt.
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)
        threading.Thread(target=self._look, name="interruption", daemon=True).start()

    def _interrupt(self, number: int, frame: Any) -> None:
        if self.patience > 0:
            raise KeyboardInterrupt

    def _lost(self, raised: Any) -> None:
        if isinstance(raised.exc_value, KeyboardInterrupt) or raised.exc_type is KeyboardInterrupt:
            self._sender.send(LOST)
        else:
            self._unraisable(raised)

    def _look(self) -> None:
        while self._next(None) != "pressed":
            pass
        began, repeated = time.monotonic(), False
        while True:
            passed = time.monotonic() - began
            if not repeated and self.again is not None and passed >= self.again:
                repeated = True
                self._repeat()
            if passed >= self.patience:
                break
            until = (
                self.patience if repeated or self.again is None else min(self.again, self.patience)
            )
            event = self._next(max(until - passed, 1e-3))
            if event == "pressed":
                break
            if event == "lost":
                time.sleep(MOMENT)
                self._repeat()
        self.end(self.words)

    def _next(self, timeout: float | None) -> str | None:
        """Return what happened next, or None after `timeout` seconds."""
        self._signals.settimeout(timeout)
        try:
            byte = self._signals.recv(1)
        except TimeoutError:
            return None
        if byte == LOST:
            return "lost"
        if byte[0] != signal.SIGINT:
            return None
        if self._own:
            self._own -= 1
            return None
        return "pressed"

    def _repeat(self) -> None:
        self._own += 1
        if hasattr(signal, "pthread_kill"):  # a true signal, which wakes what sleeps in the system
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        else:
            _thread.interrupt_main()

    def end(self, words: str) -> NoReturn:
        with self._ending:  # a second thread waits here for the end
            say(words)
            os._exit(INTERRUPTED)


_watch: _Watch | None = None

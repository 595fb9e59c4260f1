"""The command `ufm`: build the parser, run a command, and turn errors into lines.

`STATUSES` says what the exit status means. What goes wrong is one line on stderr.
"""

import argparse
import io
import os
import re
import sys
import warnings
from collections.abc import Sequence
from typing import Any

from ufm import interruption
from ufm._support import ArgumentError, __version__, did_you_mean
from ufm.cli import imbalance, measure, solve, sweep, verify
from ufm.cli.output import PATIENCE
from ufm.cli.problem_options import BALLS, OPTIONS
from ufm.solving import SolveInterrupted

__all__ = ["main"]

# In the order of the help.
COMMANDS = (
    verify.add_parser,
    solve.add_parser,
    imbalance.add_threshold_parser,
    imbalance.add_phase_parser,
    sweep.add_parser,
    sweep.add_plot_parser,
    imbalance.add_mitigate_parser,
    measure.add_parser,
)
STATUSES = """\
exit status:
  0    done, and all of it certified, confirmed or found
  1    done, but not all of it is certified, confirmed or found; or a sweep had to stop
  2    bad use: an option, a file, or an output that cannot be written
  130  interrupted by Ctrl-C
  141  the reader of the output has gone, as with `| head`
"""
NOT_READ = 141  # 128 + SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status.

    Args:
        arguments: The arguments of the command line. If not given, those of this process. The
            process is then the command's own: its output is flushed, a warning is one line, and
            Ctrl-C ends it within seconds (`ufm.interruption`).
    """
    return _own_process() if arguments is None else _main(arguments)


def _own_process() -> int:
    interruption.watch()
    warnings.showwarning = _show_warning
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # it is None where it was closed
            stream.reconfigure(errors="backslashreplace")
    try:
        status = _main(sys.argv[1:])
    except SystemExit as stop:  # of argparse
        status = stop.code if isinstance(stop.code, int) else 2
    except BrokenPipeError:  # the help of argparse, too, may have no reader or no room
        status = NOT_READ
    except OSError as error:
        interruption.say(f"error: {_message(error, argparse.Namespace())}")
        status = 2
    status = _flushed(status)
    interruption.expect(0.0)
    return status


def _main(arguments: Sequence[str]) -> int:
    options = _options(arguments)
    interruption.expect(PATIENCE, again=options.again)
    try:
        return options.run(options)
    except BrokenPipeError:
        return NOT_READ
    except (ValueError, OSError) as error:
        interruption.say(f"error: {_message(error, options)}")
        return 2
    except MemoryError as error:
        interruption.say(
            f"error: there is not enough memory: {error or 'the problem is too large'}; "
            "choose a smaller one"
        )
        return 2
    except KeyboardInterrupt as stop:
        _flushed(interruption.INTERRUPTED)
        words = "" if isinstance(stop, SolveInterrupted) else str(stop)
        if isinstance(stop.__cause__, OSError):
            interruption.say(words)
            return 1
        interruption.end(words)
        return interruption.INTERRUPTED


def _flushed(status: int) -> int:
    """Flush the output, and return the exit status: the given one if that works."""
    if sys.stdout is None:
        return status
    try:
        sys.stdout.flush()
        return status
    except BrokenPipeError:
        status = NOT_READ
    except OSError as error:
        if status != 2:  # else that was said already
            interruption.say(f"error: {_message(error, argparse.Namespace())}")
        status = 2
    # Python flushes the buffer again when it exits; send what is left in it nowhere.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return status


def _show_warning(message: Any, *where: Any, **more: Any) -> None:
    interruption.say(f"warning: {' '.join(str(message).split())}")


def _message(error: Exception, options: argparse.Namespace) -> str:
    """Return the message of an error as one line.

    If the library refuses an argument, the option that gave the argument goes first.
    """
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else "standard output: "
        return f"{where}{error.strerror}{'' if error.filename else '; write the output elsewhere'}"
    line = " ".join(str(error).split())
    names = getattr(options, "names", OPTIONS) | (
        BALLS if getattr(options, "weight_ball", None) else {}
    )
    option = names.get(error.argument) if isinstance(error, ArgumentError) else None
    return f"{option}: {line}" if option else line


class _Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, and that reports a help it cannot write."""

    def _print_message(self, message: str, file: Any = None) -> None:
        if file is sys.stdout and file is not None:
            file.write(message)  # the method of argparse ignores errors
        else:
            super()._print_message(message, file)

    def error(self, message: str) -> Any:
        self.exit(2, f"{self.prog}: error: {message}; see `{self.prog} --help`\n")


def _parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """Return the parser, and those of the commands by name."""
    parser = _Parser(
        prog="ufm",
        description="Unconstrained features models of neural collapse: "
        "solved, certified, compared.",
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ufm {__version__}")
    subparsers = parser.add_subparsers(
        title="commands", required=True, metavar="COMMAND", parser_class=_Parser
    )
    for add_parser in COMMANDS:
        add_parser(subparsers)
    for command in subparsers.choices.values():
        command.set_defaults(parser=command, again=command.get_default("again"))
    return parser, dict(subparsers.choices)


def _options(arguments: Sequence[str]) -> argparse.Namespace:
    """Return the options of a command line. Misspelt names are reported before missing ones."""
    parser, commands = _parser()
    command = next((argument for argument in arguments if not argument.startswith("-")), None)
    if command is not None and command not in commands:
        names = ", ".join(commands)
        parser.error(
            f"COMMAND must be one of {names}; got {command!r}{did_you_mean(command, commands)}"
        )
    options, rest = parser.parse_known_args(_with_negative_numbers(arguments))
    unknown = next(
        (argument for argument in rest if argument.startswith("-")), rest[0] if rest else None
    )
    if unknown is not None:
        known = re.findall(r"--[a-z-]+", options.parser.format_help())
        options.parser.error(
            f"there is no option {unknown}{did_you_mean(unknown.partition('=')[0], known)}"
        )
    return options


def _with_negative_numbers(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with each negative number, or list of numbers, joined to its option.

    Otherwise argparse takes -1e-3 for an option.
    """
    joined: list[str] = []
    for argument in arguments:
        number = re.match(r"-(\.?\d|inf|nan)", argument, re.IGNORECASE)
        if number and joined and joined[-1].startswith("--") and "=" not in joined[-1]:
            joined[-1] += f"={argument}"
        else:
            joined.append(argument)
    return joined

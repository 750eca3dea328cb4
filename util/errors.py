"""What every command shares: errors in one line, interruptions, exit statuses.

Importing this module makes Ctrl-C one line even while the libraries are still being imported.
"""

import argparse
import os
import signal
import sys
import tempfile
import textwrap
import time
import traceback
import typing
import warnings
from collections.abc import Callable
from pathlib import Path

LEAD_SECONDS = 4.0  # longer than torchrun needs to notice that a process has failed and to end the others
PEER_IS_GONE = ("closed by peer", "closed by remote peer", "reset by peer", "Broken pipe", "remote process exited")
GPU_IS_FULL = "the GPU is out of memory; lower --batch-size or --eval-batch-size, or take --cache disk"
KNOWN = {  # part of an error text of PyTorch: the line shown to the user
    "deterministic implementation": "{}; run without --deterministic",
    "can't allocate memory": "this machine is out of memory; lower --batch-size, --eval-batch-size or --image-size",
    "no kernel image is available": "this PyTorch was not built for this GPU; install a build that is, or take -g cpu",
    "CUDA error: out of memory": GPU_IS_FULL,  # the driver's own, outside PyTorch's allocator
    "CUBLAS_STATUS_ALLOC_FAILED": GPU_IS_FULL,
}


class UserError(Exception):
    """A user's mistake, in one line: the fault, the expectation, and the command that fixes it."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM, by number: the run has stopped with its state saved, and can be resumed."""


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line, without the usage; the description is the first line of a docstring."""

    def __init__(self, docstring: str, **options) -> None:
        super().__init__(description=docstring.strip().splitlines()[0], allow_abbrev=False, **options)
        text = "show the lines of code that led to an error"
        self.add_argument("--traceback", action="store_true", default=argparse.SUPPRESS, help=text)

    def error(self, message: str) -> typing.NoReturn:
        _fail(f"{message} (see --help)")


def describe_error(error: Exception) -> str:
    """An error of a library in a few words, without advice to load pickled objects."""
    if isinstance(error, KeyError):
        return f"it lacks {str(error.args[0]).removesuffix(' is not a file in the archive')}"
    text = str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error)
    instead = "it is empty or cut short" if isinstance(error, EOFError) else type(error).__name__
    text = textwrap.shorten(text, 300) or instead
    if "pickle" in text.lower() or "weights_only" in text:
        return "it is something else, or holds pickled objects, which are never read"
    return text


def run_script(main: Callable[[], object]) -> None:
    """Call main() as a command: a user's mistake becomes one line on stderr and exit status 2, without a traceback; an
    unforeseen error one line and exit status 1, with the traceback in a file."""
    sys.stdout, sys.stderr = sys.stdout or open(os.devnull, "w"), sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    # a log file shows a line when it is printed; a terminal without Unicode shows the codes of characters
    sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    warnings.formatwarning = lambda message, category, *_: f"{_program()}: warning: {_flat(message)}\n"
    try:
        main()
    except (Exception, KeyboardInterrupt, Interrupted) as error:
        _fail(*_line(error))


def _line(error: BaseException) -> tuple[str, int]:
    """The line that reports an error, and the exit status."""
    match error:
        case UserError():
            return str(error), 2
        case BrokenPipeError():
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # or Python would fail again as it ends
            return f"the reader of this output has ended ({error.strerror})", 2
        case MemoryError():
            return f"this machine is out of memory ({describe_error(error)})", 2
        case OSError():
            return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error), 2
        case KeyboardInterrupt():
            return "interrupted", 128 + signal.SIGINT
        case Interrupted(args=(number,)):
            instead = " instead of --overwrite" if "--overwrite" in sys.argv else ""
            name = signal.Signals(number).name
            return f"stopped by {name}; the same command with --resume{instead} continues", 128 + number
        case RuntimeError():
            text = str(error)
            if type(error).__name__ == "OutOfMemoryError":
                return GPU_IS_FULL, 2
            if known := [line for sign, line in KNOWN.items() if sign in text]:
                return known[0].format(text.splitlines()[0].split(", but")[0]), 2
            if started_by_torchrun() and any(sign in text for sign in PEER_IS_GONE):
                time.sleep(2 * LEAD_SECONDS)  # that process prints first
                return "a different process of this run has ended; its line gives the reason", 2
    last = traceback.extract_tb(error.__traceback__)[-1]
    with tempfile.NamedTemporaryFile("w", prefix="traceback_", suffix=".txt", delete=False, errors="replace") as file:
        file.write(f"{sys.argv}\n{''.join(traceback.format_exception(error))}")
    what = textwrap.shorten(f"{type(error).__name__}: {error}", 300)
    place = f"{Path(last.filename).name}, line {last.lineno}"
    return f"a mistake in this program: {what} ({place}); {file.name} has the traceback, please report it", 1


def _flat(text: object) -> str:
    return printable(" ".join(str(text).split()))


def _program() -> str:
    return Path(sys.argv[0]).name + (f", process {torchrun_rank()}" if torchrun_rank() else "")


def printable(text: str) -> str:
    """A text without line breaks and characters that move a terminal's cursor."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _interrupted_early(kind: type[BaseException], error: BaseException, trace: object) -> None:
    if kind is not KeyboardInterrupt:
        return sys.__excepthook__(kind, error, trace)
    print(f"{_program()}: interrupted", file=sys.stderr, flush=True)
    os._exit(128 + signal.SIGINT)


sys.excepthook = _interrupted_early


def _fail(line: str, status: int = 2) -> typing.NoReturn:
    """Print the line on stderr and exit.

    torchrun ends all processes once one has failed. Those of rank above 0 wait before they print, so that an error of
    all is printed once, and all exit at once, before NCCL prints that its process group was not shut down.
    """
    interrupted = status > 128
    if torchrun_rank() and not interrupted:
        time.sleep(LEAD_SECONDS)
    if "--traceback" in sys.argv and sys.exc_info()[0]:
        traceback.print_exc()
    if not (torchrun_rank() and interrupted):
        print(f"{_program()}: {'' if interrupted else 'error: '}{_flat(line)}", file=sys.stderr)
    if started_by_torchrun():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    sys.exit(status)


def started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def torchrun_rank() -> int:
    """The number of this process among those that torchrun started; 0 without it."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0

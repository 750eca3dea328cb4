"""What every command shares: errors in one line, interruptions, exit statuses."""

import argparse
import os
import signal
import sys
import time
import typing
from collections.abc import Callable
from pathlib import Path

LEAD_SECONDS = 4.0  # longer than torchrun needs to notice that a process has failed and to end the others
PEER_IS_GONE = ("closed by peer", "closed by remote peer", "reset by peer", "Broken pipe", "remote process exited")
KNOWN = {  # part of an error text of PyTorch: the line shown to the user
    "deterministic implementation": "{}; run without --deterministic",
    "Expected to have finished reduction": "a part of this backbone gets no gradient: train it in a single process",
}


class UserError(Exception):
    """A user's mistake, in one line: what was seen, what was expected, and the command that mends it."""


class Interrupted(BaseException):
    """SIGINT or SIGTERM, by number: the run has stopped with its state saved, and can be resumed."""


class OneLineParser(argparse.ArgumentParser):
    """argparse whose errors are one line, without the usage; the description is the first line of a docstring."""

    def __init__(self, docstring: str, **options) -> None:
        super().__init__(description=docstring.strip().splitlines()[0], allow_abbrev=False, **options)

    def error(self, message: str) -> typing.NoReturn:
        _fail(f"{message} (see --help)")


def why(error: Exception) -> str:
    """An error of a library in a few words, without advice to load pickled objects."""
    if isinstance(error, KeyError):
        return f"it lacks {error.args[0]}"
    lines = str(getattr(error, "reason", None) or getattr(error, "strerror", None) or error).strip().splitlines()
    text = lines[0] if lines else "it is empty or cut short" if isinstance(error, EOFError) else type(error).__name__
    if "pickle" in text.lower() or "weights_only" in text:
        return "it is something else, or holds pickled objects, which are never read"
    return text


def run_script(main: Callable[[], object]) -> typing.NoReturn:
    """Call main() as a command: a user's mistake becomes one line on stderr and exit status 2, no traceback."""
    sys.stdout.reconfigure(line_buffering=True)  # a log file shows a line when it is printed
    try:
        main()
    except UserError as error:
        _fail(str(error))
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        _fail(f"{where}{error.strerror or error}")
    except RuntimeError as error:
        text = str(error)
        if type(error).__name__ == "OutOfMemoryError":
            _fail("the GPU is out of memory; lower --batch-size or --eval-batch-size, or take --cache disk")
        for sign, line in KNOWN.items():
            if sign in text:
                _fail(line.format(text.splitlines()[0].split(", but")[0]))
        if started_by_torchrun() and any(sign in text for sign in PEER_IS_GONE):
            time.sleep(2 * LEAD_SECONDS)  # that process prints first
            _fail("another process of this run has ended; its own line says why")
        raise
    except KeyboardInterrupt:
        _fail("interrupted", 128 + signal.SIGINT)
    except Interrupted as interrupted:
        if torchrun_rank():
            sys.exit(128 + interrupted.args[0])
        name = signal.Signals(interrupted.args[0]).name
        _fail(f"stopped by {name}; the same command with --resume goes on", 128 + interrupted.args[0])


def _fail(line: str, status: int = 2) -> typing.NoReturn:
    """Print the line on stderr and exit. torchrun ends all processes once one has failed; the others wait before they
    print, so that an error that all of them meet is printed once."""
    program = Path(sys.argv[0]).name
    if torchrun_rank():
        program += f", process {torchrun_rank()}"
        time.sleep(LEAD_SECONDS)
    kind = "" if status > 128 else "error: "
    print(f"{program}: {kind}{line}", file=sys.stderr)
    sys.exit(status)


def started_by_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ


def torchrun_rank() -> int:
    """The number of this process among those that torchrun started; 0 without it."""
    return int(os.environ["RANK"]) if started_by_torchrun() else 0

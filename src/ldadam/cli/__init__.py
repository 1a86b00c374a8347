"""The command line. Heavy packages are imported inside the commands."""

from __future__ import annotations

import contextlib
import signal
import sys
import traceback

from ldadam.cli import measurements, runs, studies
from ldadam.cli.app import app
from ldadam.training.errors import CommandError, FailedTogether, Interrupted, UsageError
from ldadam.training.launch import find_launch, is_first_process
from ldadam.training.sigterm import sigterm_handled_by

__all__ = ["app", "measurements", "run", "runs", "studies"]

STOPPED = Interrupted.exit_code

# What all processes raise together.
_OF_ALL = (UsageError, Interrupted, FailedTogether)


def run(arguments: list[str]) -> int:
    """Run a command and return its exit code; errors become one sentence on stderr."""
    debug = "--debug" in arguments
    try:
        with _sigterm_as_interrupt():
            return app(arguments, prog_name="ldadam", standalone_mode=True) or 0
    except SystemExit as stop:
        if stop.code == STOPPED:  # outside of a run, which would say more
            return _fail("stopped", STOPPED, debug, of_all=True)
        return stop.code if isinstance(stop.code, int) else 1
    except CommandError as error:
        return _fail(str(error), error.exit_code, debug, of_all=isinstance(error, _OF_ALL))
    except Exception as error:
        return _fail(_unexpected(error), 1, debug)


def _sigterm_as_interrupt() -> contextlib.AbstractContextManager[None]:
    """Until a run has handlers of its own, SIGTERM ends a command as Ctrl-C does.

    Not under torchrun, which ends processes by it after one has said why it failed.
    """
    if find_launch().by_torchrun or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        return contextlib.nullcontext()
    return sigterm_handled_by(signal.default_int_handler)


def _fail(sentence: str, exit_code: int, debug: bool, *, of_all: bool = False) -> int:
    """Print the sentence; where all processes fail with the same one, the first alone does."""
    if debug:
        traceback.print_exc()
    if not of_all or is_first_process():
        print(f"ldadam: {sentence}", file=sys.stderr)
    return exit_code


def _unexpected(error: Exception) -> str:
    from ldadam.training.checkpoints import disk_reason

    if reason := disk_reason(error):
        return f"could not write or read a file: {reason}"
    first_line = (str(error).strip().splitlines() or ["no message"])[0]
    return f"{type(error).__name__}: {first_line} (--debug shows where)"

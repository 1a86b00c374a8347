"""The ways a command can fail, and the one way it can be stopped. The exit code is part of the type."""

from __future__ import annotations


class CommandError(Exception):
    """Ends a command with one sentence on stderr and `exit_code`."""

    exit_code = 1


class UsageError(CommandError):
    """What the user asked for cannot be done: an unknown name, a bad value, a corpus without text."""

    exit_code = 2


class RunError(CommandError):
    """The request was fine and something went wrong: a full disk, a damaged checkpoint."""

    exit_code = 1


class Interrupted(CommandError):
    """Ctrl-C or SIGTERM, after the state was saved."""

    exit_code = 130


class FailedTogether(CommandError):
    """What happened to one process of a run, or to all of them, and ends them all with the same sentence."""

    def __init__(self, message: str, *, exit_code: int = 1) -> None:
        super().__init__(message)
        self.exit_code = exit_code

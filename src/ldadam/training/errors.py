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


class FailedElsewhere(CommandError):
    """Another process of the run has failed, with this message and exit code."""

    def __init__(self, message: str, *, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code

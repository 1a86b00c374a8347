"""The application that commands are added to, and what they share."""

from __future__ import annotations

import sys
import warnings
from typing import Annotated, Any

import typer

from ldadam.training.launch import is_first_process

app = typer.Typer(
    name="ldadam",
    help="Train language models with LDAdam.",
    epilog="Exit codes: 0 success, 1 failure, 2 a request that cannot be met, 130 stopped by Ctrl-C or SIGTERM.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)

Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", rich_help_panel="Run")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of torch.", min=1)]


def show_warnings_as_sentences() -> None:
    """Warnings of the optimizer are for the user; those of other packages are not."""
    from ldadam import LDAdamWarning

    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if is_first_process():
            print(f"ldadam: {message}", file=sys.stderr)

    warnings.simplefilter("ignore")
    warnings.simplefilter("always", LDAdamWarning)
    warnings.showwarning = show

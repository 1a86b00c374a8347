"""The `ldadam` command. Without the `train` extra it says how to get it."""

import importlib.util
import sys


def main() -> None:
    """Run the command line interface."""
    if importlib.util.find_spec("typer") is None:
        sys.exit("The ldadam command needs more packages than the optimizer: pip install 'ldadam[train]'")
    from ldadam.cli import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()

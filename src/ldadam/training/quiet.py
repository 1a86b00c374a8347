"""transformers without words of its own: the run has a progress bar and sentences already."""

from __future__ import annotations


def silence_transformers() -> None:
    """No progress bars and no warnings, such as of a new head or of a process group that it does not know of."""
    from transformers.utils.logging import disable_progress_bar, set_verbosity_error

    disable_progress_bar()
    set_verbosity_error()

"""What a misspelt name was probably meant to be."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def did_you_mean(name: str, known: Iterable[str], *, otherwise: str = "", similarity: float = 0.6) -> str:
    """The hint that ends an error message.

    Args:
        name: what was given; capitals do not matter.
        known: what could have been meant.
        otherwise: the hint where nothing is close.
        similarity: how close it has to be, between 0 and 1.

    Example:
        >>> from ldadam.spelling import did_you_mean
        >>> did_you_mean("AdamWW", ["adamw", "muon"], otherwise="expected adamw or muon")
        'did you mean adamw?'
    """
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=similarity)
    return f"did you mean {close[0]}?" if close else otherwise

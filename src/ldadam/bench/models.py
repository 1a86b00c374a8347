"""What an optimizer is timed on: the list of shapes of a model's weights."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from ldadam.training.errors import UsageError
from ldadam.training.presets import PRESETS, Preset

# Of the tokenizer of the papers' presets.
PAPERS_VOCAB_SIZE = 32_000

_CUSTOM = re.compile(r"(\d+)x(\d+)(?::(\d+))?")


@dataclass(frozen=True)
class Shape:
    """`count` weights of one shape; `low_rank` for those that a low-rank optimizer projects."""

    shape: tuple[int, ...]
    count: int
    low_rank: bool = True


@dataclass(frozen=True)
class Model:
    """A name and the shapes of the weights."""

    name: str
    shapes: tuple[Shape, ...]

    @property
    def num_weights(self) -> int:
        """Numbers in all weights."""
        return sum(math.prod(each.shape) * each.count for each in self.shapes)


def find_models(text: str, *, all_parameters: bool) -> list[Model]:
    """The models that `--model` names: presets, or one list of ROWSxCOLUMNS:COUNT.

    Raises:
        UsageError: a name is neither.
    """
    parts = [part.strip() for part in text.split(",") if part.strip()]
    try:
        sizes = listed_sizes(text)
    except ValueError as error:
        raise UsageError(f"--model {error}") from error
    if sizes is not None:
        return [Model(text, tuple(Shape((rows, columns), count) for rows, columns, count in sizes))]
    for part in parts:
        if part not in PRESETS:
            raise UsageError(
                f"unknown model {part!r}: expected {', '.join(PRESETS)}, or a list of ROWSxCOLUMNS:COUNT "
                "such as 512x512:32,1376x512:16"
            )
    if not parts:
        raise UsageError("--model is empty: name a preset such as 60m")
    return [Model(part, _shapes(PRESETS[part], all_parameters=all_parameters)) for part in parts]


def listed_sizes(text: str) -> list[tuple[int, int, int]] | None:
    """Rows, columns and count of each ROWSxCOLUMNS:COUNT of a list with commas; None where it is not such a list.

    Raises:
        ValueError: a side or a count is zero.
    """
    matches = [_CUSTOM.fullmatch(part.strip()) for part in text.split(",") if part.strip()]
    if not matches or not all(matches):
        return None
    sizes = [(int(match[1]), int(match[2]), int(match[3] or 1)) for match in matches if match]
    if any(0 in size for size in sizes):
        raise ValueError(f"has a side or count of zero: {text}")
    return sizes


def _shapes(preset: Preset, *, all_parameters: bool) -> tuple[Shape, ...]:
    """A Llama's weights: q, k, v, o; gate and up; down; and, if asked, norms, embedding and head."""
    hidden, inner, layers = preset.hidden_size, preset.intermediate_size, preset.num_layers
    matrices = (
        Shape((hidden, hidden), 4 * layers),
        Shape((inner, hidden), 2 * layers),
        Shape((hidden, inner), layers),
    )
    if not all_parameters:
        return matrices
    vocab = preset.vocab_size or PAPERS_VOCAB_SIZE
    norms = Shape((hidden,), 2 * layers + 1, low_rank=False)
    return (*matrices, norms, Shape((vocab, hidden), 2, low_rank=False))

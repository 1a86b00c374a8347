"""Sequences of prompts and answers: what is predicted of them, and how they are put into batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ldadam.finetune.examples import Problem
from ldadam.finetune.goals import Batch
from ldadam.training.shares import IGNORED


@dataclass(frozen=True)
class Encoded:
    """Tokens of a prompt and its answer.

    Attributes:
        num_prompt: how many at the beginning are the prompt's, which are not to be predicted.
    """

    tokens: tuple[int, ...]
    num_prompt: int

    def labels(self) -> list[int]:
        """The tokens, those of the prompt ignored."""
        return [IGNORED] * self.num_prompt + list(self.tokens[self.num_prompt :])


def encode(problem: Problem, tokenizer: Any, *, template: str, length: int) -> Encoded | None:
    """Tokens of a problem, ended by the end-of-text token and cut at `length`; None where the prompt fills that."""
    prompt = tokenizer(template.replace("{prompt}", problem.prompt))["input_ids"]
    if prompt and prompt[-1] == tokenizer.eos_token_id:
        prompt = prompt[:-1]  # some tokenizers end every text
    answer = tokenizer(problem.answer, add_special_tokens=False)["input_ids"]
    if len(prompt) >= length:
        return None
    return Encoded((*prompt, *answer, tokenizer.eos_token_id)[:length], len(prompt))


def pack(encoded: Sequence[Encoded], length: int) -> list[list[Encoded]]:
    """Examples in their order, as many in a row as fit into `length` tokens."""
    packs: list[list[Encoded]] = []
    room = 0
    for one in encoded:
        if len(one.tokens) > room:
            packs.append([])
            room = length
        packs[-1].append(one)
        room -= len(one.tokens)
    return packs


def collate_padded(encoded: Sequence[Encoded], *, pad: int) -> Batch:
    """One example per row, padded on the right to the longest."""
    length = max(len(one.tokens) for one in encoded)

    def rows(values: list[list[int]], padding: int) -> torch.Tensor:
        return torch.tensor([row + [padding] * (length - len(row)) for row in values])

    return {
        "input_ids": rows([list(one.tokens) for one in encoded], pad),
        "attention_mask": rows([[1] * len(one.tokens) for one in encoded], 0),
        "labels": rows([one.labels() for one in encoded], IGNORED),
    }


def collate_packed(packs: Sequence[Sequence[Encoded]], *, pad: int, length: int) -> Batch:
    """Several examples per row. Positions begin anew with each, by which attention keeps them apart.

    The rest of a row is an example of its own, of which nothing is to be predicted.
    """
    rows = []
    for examples in packs:
        missing = length - sum(len(one.tokens) for one in examples)
        parts = [*((one.tokens, one.labels()) for one in examples), ((pad,) * missing, [IGNORED] * missing)]
        tokens = [token for part, _ in parts for token in part]
        labels = [label for _, part in parts for label in part]
        positions = [place for part, _ in parts for place in range(len(part))]
        rows.append((tokens, positions, labels))
    names = ("input_ids", "position_ids", "labels")
    return {name: torch.tensor(values) for name, values in zip(names, zip(*rows, strict=True), strict=True)}

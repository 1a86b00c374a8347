"""From documents to blocks of tokens: documents are joined with an end-of-text token between them, never padded."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from ldadam.training.corpora import Corpus
from ldadam.training.errors import UsageError
from ldadam.training.passes import ShuffledPasses

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"
TOKENIZER_CHARACTERS = 6_000_000
# Longer runs are packed while they train: 64 M tokens are 256 MB of int32.
TOKENS_IN_MEMORY = 64_000_000


@dataclass(frozen=True)
class PackedCorpus:
    """What the training loop needs of a corpus."""

    train: Dataset[Tensor]
    validation: Tensor  # (blocks, sequence_length)
    num_train_tokens: int | None  # distinct tokens; None while streaming
    fingerprint: str  # of the tokens: tells a resumed run whether the text is still the same


def train_tokenizer(documents: Iterable[str], *, vocab_size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer trained on the first documents."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer: Any = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_characters(documents, TOKENIZER_CHARACTERS), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END_OF_TEXT)


def _first_characters(documents: Iterable[str], limit: int) -> Iterator[str]:
    for document in documents:
        if limit <= 0:
            return
        yield document[:limit]
        limit -= len(document)


def load_tokenizer(name: str) -> PreTrainedTokenizerFast:
    """A ready tokenizer: a folder, or an id of the hub."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # network, missing files and broken files raise unrelated types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UsageError(
            f"tokenizer {name!r} could not be loaded: {reason.rstrip('.')}; "
            f"give --tokenizer a folder, or --vocab-size to train one on the corpus"
        ) from error
    if tokenizer.eos_token_id is None:
        raise UsageError(f"tokenizer {name!r} has no end-of-text token, which goes between documents")
    return tokenizer


def pack(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, *, block_length: int) -> Iterator[np.ndarray]:
    """Blocks of `block_length` tokens, in the documents' order; the last incomplete one is dropped."""
    waiting: list[np.ndarray] = []
    num_waiting = 0
    for tokens in _token_stream(documents, tokenizer):
        waiting.append(tokens)
        num_waiting += len(tokens)
        if num_waiting < block_length:
            continue
        joined = np.concatenate(waiting)
        num_whole = num_waiting // block_length * block_length
        yield from joined[:num_whole].reshape(-1, block_length)
        waiting, num_waiting = [joined[num_whole:]], num_waiting - num_whole


def _token_stream(documents: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[np.ndarray]:
    """Tokens of each document, followed by the end-of-text token. Tokenized 64 at a time, which uses all cores."""
    remaining = iter(documents)
    while batch := list(itertools.islice(remaining, 64)):
        encoded = tokenizer(batch, add_special_tokens=False, return_attention_mask=False, verbose=False)
        for tokens in encoded["input_ids"]:
            yield np.array([*tokens, tokenizer.eos_token_id], dtype=np.int32)


def collect_blocks(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerFast, *, block_length: int, max_blocks: int
) -> Tensor:
    """The first `max_blocks` blocks as one (blocks, block_length) tensor; no document after them is tokenized."""
    blocks = list(itertools.islice(pack(documents, tokenizer, block_length=block_length), max_blocks))
    return torch.from_numpy(np.stack(blocks)) if blocks else torch.empty(0, block_length, dtype=torch.int32)


class StreamedBlocks(IterableDataset[Tensor]):
    """Blocks packed while training, over as many passes as it takes."""

    def __init__(self, corpus: Corpus, tokenizer: PreTrainedTokenizerFast, *, block_length: int) -> None:
        self.corpus = corpus
        self.tokenizer = tokenizer
        self.block_length = block_length

    def __iter__(self) -> Iterator[Tensor]:
        for which_pass in itertools.count():
            num_blocks = 0
            for block in pack(self.corpus.train(which_pass), self.tokenizer, block_length=self.block_length):
                num_blocks += 1
                yield torch.from_numpy(block)
            if num_blocks == 0:
                raise too_little_text(self.corpus, "to train on", block_length=self.block_length)


def too_little_text(corpus: Corpus, purpose: str, *, block_length: int) -> UsageError:
    """The error for a corpus without one whole block."""
    return UsageError(
        f"corpus {corpus.name} has too little text {purpose}: expected at least one block of {block_length} tokens; "
        f"give a larger corpus, or another --validation-fraction"
    )


def pack_corpus(
    corpus: Corpus,
    tokenizer: PreTrainedTokenizerFast,
    *,
    sequence_length: int,
    num_samples: int,
    eval_tokens: int,
    seed: int,
) -> PackedCorpus:
    """Blocks to train on and to evaluate with. Tokenizes only what the run will see."""
    max_eval_blocks = max(1, eval_tokens // sequence_length)
    validation = collect_blocks(
        corpus.validation(), tokenizer, block_length=sequence_length, max_blocks=max_eval_blocks
    )
    if len(validation) == 0:
        raise too_little_text(corpus, "for validation", block_length=sequence_length)
    if corpus.streamed or num_samples * sequence_length > TOKENS_IN_MEMORY:
        stream = StreamedBlocks(corpus, tokenizer, block_length=sequence_length)
        return PackedCorpus(stream, validation, None, fingerprint(validation))
    blocks = collect_blocks(corpus.train(0), tokenizer, block_length=sequence_length, max_blocks=num_samples)
    if len(blocks) == 0:
        raise too_little_text(corpus, "to train on", block_length=sequence_length)
    train = ShuffledPasses(blocks, num_samples=num_samples, seed=seed)
    return PackedCorpus(train, validation, blocks.numel(), fingerprint(validation, blocks))


def fingerprint(*blocks: Tensor) -> str:
    """A hash of all tokens."""
    digest = hashlib.sha256()
    for tensor in blocks:
        digest.update(tensor.contiguous().numpy().tobytes())
    return digest.hexdigest()


def tokenizer_for(corpus: Corpus, *, name: str | None, vocab_size: int | None, saved: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of a run: the saved one when the run is resumed, a named one, or a new one from the corpus."""
    from transformers import PreTrainedTokenizerFast

    if saved.exists():
        return PreTrainedTokenizerFast.from_pretrained(saved)
    if name is not None:
        return load_tokenizer(name)
    assert vocab_size is not None
    if vocab_size < 257:
        raise UsageError(f"vocab_size must be at least 257 (all bytes and one end-of-text token), got {vocab_size}")
    return train_tokenizer(corpus.train(0), vocab_size=vocab_size)

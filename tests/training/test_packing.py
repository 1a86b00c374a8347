"""Packing keeps every token, tokenizes no more than needed, and has an order that a resumed run can rejoin."""

import itertools

import numpy as np
import pytest
import torch
from tiny_runs import documents

from ldadam.training.corpora import Corpus
from ldadam.training.errors import UsageError
from ldadam.training.packing import (
    StreamedBlocks,
    collect_blocks,
    fingerprint,
    pack,
    pack_corpus,
    tokenizer_for,
    train_tokenizer,
)
from ldadam.training.passes import ShuffledPasses


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(documents(), vocab_size=300)


def corpus_of(texts: list[str]) -> Corpus:
    return Corpus("test", train=lambda _: iter(texts[5:]), validation=lambda: iter(texts[:5]))


def test_packing_loses_no_token_and_pads_none(tokenizer):
    texts = documents(30)
    expected = [token for text in texts for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    blocks = list(pack(texts, tokenizer, block_length=64))
    assert all(len(block) == 64 for block in blocks)
    assert np.concatenate(blocks).tolist() == expected[: len(expected) // 64 * 64]


def test_a_trained_tokenizer_gives_the_text_back(tokenizer):
    text = "naïve café\t\n  def f(x): return 'ünï' # 漢字"
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_only_as_much_text_is_tokenized_as_the_run_needs(tokenizer):
    consumed = itertools.count()
    texts = (text for text in documents(10_000) if next(consumed) is not None)
    collect_blocks(texts, tokenizer, block_length=32, max_blocks=10)
    assert next(consumed) < 200


def test_every_block_comes_once_per_pass_in_another_order():
    blocks = torch.arange(12).reshape(6, 2)
    data = ShuffledPasses(blocks, num_samples=15, seed=3)
    seen = [data[i][0].item() // 2 for i in range(len(data))]
    assert sorted(seen[:6]) == sorted(seen[6:12]) == list(range(6))
    assert seen[:6] != seen[6:12]


def test_the_order_of_blocks_can_be_entered_anywhere():
    blocks = torch.arange(12).reshape(6, 2)
    whole = ShuffledPasses(blocks, num_samples=15, seed=3)
    expected = [whole[i] for i in range(15)]
    entered = ShuffledPasses(blocks, num_samples=15, seed=3)
    torch.testing.assert_close([entered[i] for i in range(8, 15)], expected[8:])


def test_a_stream_yields_the_blocks_of_pass_after_pass(tokenizer):
    corpus = corpus_of(documents(20))
    packed = collect_blocks(corpus.train(0), tokenizer, block_length=32, max_blocks=10_000)
    stream = StreamedBlocks(corpus, tokenizer, block_length=32)
    streamed = list(itertools.islice(iter(stream), 2 * len(packed)))
    torch.testing.assert_close(torch.stack(streamed), torch.cat([packed, packed]))


def test_the_fingerprint_sees_one_changed_word(tokenizer):
    texts = documents(20)
    marks = []
    for word in ("cat", "mat"):
        corpus = corpus_of([*texts[:-1], f"the {word} {texts[-1]}"])
        packed = pack_corpus(corpus, tokenizer, sequence_length=8, num_samples=10_000, eval_tokens=64, seed=0)
        marks.append(packed.fingerprint)
    assert marks[0] != marks[1]
    assert fingerprint(torch.ones(2)) == fingerprint(torch.ones(2))


def test_too_little_text_to_hold_out_is_one_sentence(tokenizer):
    with pytest.raises(UsageError, match="too little text for validation: expected at least one block of 2048 tokens"):
        pack_corpus(corpus_of(documents(6)), tokenizer, sequence_length=2048, num_samples=1, eval_tokens=64, seed=0)


def test_a_tokenizer_smaller_than_the_bytes_is_refused(tmp_path):
    with pytest.raises(UsageError, match="vocab_size must be at least 257"):
        tokenizer_for(corpus_of(documents(6)), name=None, vocab_size=100, saved=tmp_path / "none")

"""What the examples train: a Llama of 70 thousand parameters, on the source of a module of the Python that runs it."""

import argparse
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = 256  # also the padding


def arguments(description: str | None) -> argparse.Namespace:
    """The options that the examples share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--max-steps", type=int, default=20, help="train up to this step")
    parser.add_argument("--out", type=Path, default=Path("runs/example"), help="folder of the checkpoint")
    parser.add_argument("--resume", action="store_true", help="go on with the checkpoint in that folder")
    return parser.parse_args()


def model() -> LlamaForCausalLM:
    """The same weights at each call."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 96, "num_hidden_layers": 4, "num_attention_heads": 2}
    tokens = {"vocab_size": END + 1, "pad_token_id": END, "eos_token_id": END, "bos_token_id": None}
    return LlamaForCausalLM(LlamaConfig(**tokens, **sizes, tie_word_embeddings=False))


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte is a token."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    encoder = Tokenizer(models.BPE({**{char: index for index, char in enumerate(alphabet)}, "<end>": END}, []))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=encoder, eos_token="<end>", pad_token="<end>")


def texts(count: int = 32, length: int = 64) -> list[str]:
    """The first pieces of the source of `argparse`, which is ASCII."""
    source = Path(argparse.__file__).read_text(encoding="utf-8")
    return [source[start : start + length] for start in range(0, count * length, length)]


def rows(count: int = 32) -> list[dict[str, Tensor]]:
    """The same as examples for a causal language model."""
    encoded = [torch.tensor(tokenizer()(text)["input_ids"]) for text in texts(count)]
    return [{"input_ids": tokens, "labels": tokens} for tokens in encoded]

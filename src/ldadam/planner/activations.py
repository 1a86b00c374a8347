"""What the forward pass keeps for the backward pass: an estimate for Llama-like decoders.

Bytes for one token, with b a number's (hidden h, keys and values k each, inner i, heads a; float32 has f = 4):

    two norms    2 (f h + b h + b h)   input in float32, normalised input, weighted output: what linear layers read
    attention    b (2 h + 2 k) + f a   queries, keys, values, output, log-sum-exp
    gated MLP    4 b i                 gate, its SiLU, up, their product
    head         f h + 2 b h + f v     final norm, log-probabilities

At the peak there are all layers, and the larger of two: the head with logits and two float32 gradients of them,
(b + 2 f) v; or the backward pass of one layer, with gradients of three inner and two hidden tensors, b (3 i + 2 h).
With checkpointing a layer keeps its input, b h, and one at a time is computed anew.

Rotary factors and masks, which all layers share, are left out, and so are repeated keys: fused attention needs none.
Derived from the operations of transformers' Llama that autograd keeps tensors for; tests count them on a small model.
"""

import torch

from ldadam.planner.models import LlamaShape


def layer_bytes(llama: LlamaShape, *, itemsize: int) -> int:
    """Bytes that one layer saves for one token."""
    full = torch.float32.itemsize
    norms = 2 * (full + 2 * itemsize) * llama.hidden
    attention = itemsize * 2 * (llama.hidden + llama.kv) + full * llama.heads
    return norms + attention + itemsize * 4 * llama.inner


def kept_bytes(llama: LlamaShape, *, itemsize: int, checkpointing: bool) -> int:
    """Bytes that all layers keep for one token until their backward pass."""
    layer = itemsize * llama.hidden if checkpointing else layer_bytes(llama, itemsize=itemsize)
    return llama.layers * layer


def head_bytes(llama: LlamaShape, *, itemsize: int) -> int:
    """Bytes that the final norm and the loss keep for one token: the norm's tensors and log-probabilities."""
    full = torch.float32.itemsize
    return (full + 2 * itemsize) * llama.hidden + full * llama.vocab


def activation_bytes(llama: LlamaShape, *, tokens: int, itemsize: int, checkpointing: bool) -> int:
    """Bytes at the peak of forward and backward: what layers keep, and the larger of the loss's and a layer's work.

    Args:
        llama: sizes.
        tokens: batch times sequence length, on one device.
        itemsize: bytes of a number of the weights.
        checkpointing: whether each layer keeps its input only.
    """
    full = torch.float32.itemsize
    loss = head_bytes(llama, itemsize=itemsize) + (itemsize + 2 * full) * llama.vocab
    layer = itemsize * (3 * llama.inner + 2 * llama.hidden)
    if checkpointing:
        layer += layer_bytes(llama, itemsize=itemsize)
    kept = kept_bytes(llama, itemsize=itemsize, checkpointing=checkpointing)
    return tokens * (kept + max(loss, layer))

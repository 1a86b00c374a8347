"""What crosses between devices in a step, and the memory that this takes on each."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

from ldadam.distributed.plan import MESSAGES, Collective, messages, reductions, waves
from ldadam.layout import math_dtype
from ldadam.planner.shards import Shard, bytes_by_unit

# Bytes at which torch's DistributedDataParallel sends a bucket, by default; its first one is smaller.
DDP_BUCKET_BYTES = 25 * 2**20
DDP_FIRST_BUCKET_BYTES = 2**20


def traffic_of_passes(shards: Sequence[Shard], *, sharding: str) -> list[Collective]:
    """The collectives of a forward and a backward pass, for the weights that are trained, in the model's order."""
    if sharding == "fsdp":
        return _gathers(shards)
    is_compressed = sharding == "compressed"
    sizes = [shard.param.nbytes for shard in shards if not (is_compressed and shard.layout)]
    what = "dense gradients" if is_compressed else "gradients"
    return [Collective("all_reduce", what, sum(sizes), _num_buckets(reversed(sizes)), "backward")]


def _num_buckets(sizes: Iterable[int]) -> int:
    """How many buckets DDP averages, from the bytes of gradients in the order of backward; none is divided."""
    count, held, full = 0, 0, DDP_FIRST_BUCKET_BYTES
    for size in sizes:
        held += size
        if held >= full:
            count, held, full = count + 1, 0, DDP_BUCKET_BYTES
    return count + (held > 0)


def _gathers(shards: Sequence[Shard]) -> list[Collective]:
    """Weights for both passes (what is in no layer stays whole between them), gradients once."""
    units = bytes_by_unit(shards)
    total, num_layers = sum(units.values()), sum(unit != "" for unit in units)
    return [
        Collective("all_gather", "weights", total, len(units), "forward"),
        Collective("all_gather", "weights", total - units.get("", 0), num_layers, "backward"),
        Collective("reduce_scatter", "gradients", total, len(units), "backward"),
    ]


def traffic_of_step(shards: Sequence[Shard], *, sharding: str, packed: bool) -> list[Collective]:
    """The collectives of LDAdamW's step; `packed` says that matrices are stepped together, not one by one."""
    sent = _waves(shards, sharding=sharding, packed=packed)
    terms = set().union(*sent)
    found = []
    for names in MESSAGES:
        sizes = [size for wave in sent if (size := messages(wave).get(names))]
        if sizes:
            what = ", ".join(name for name in names if name in terms)
            found.append(Collective("all_reduce", what, sum(sizes), len(sizes)))
    return found


def message_bytes(shards: Sequence[Shard], *, sharding: str, packed: bool) -> int:
    """Bytes of the longest message of a step: what is packed together, or the terms of one parameter."""
    sent = _waves(shards, sharding=sharding, packed=packed)
    return max((size for wave in sent for size in messages(wave).values()), default=0)


def _waves(shards: Sequence[Shard], *, sharding: str, packed: bool) -> list[Counter[str]]:
    """Bytes of each term of the parameters that are stepped together."""
    each: list[Counter[str]] = []
    for shard in shards:
        if shard.layout is not None:
            itemsize = math_dtype(shard.param.dtype).itemsize
            sent = reductions(shard.layout, sharding, adds_residual=shard.hyper.scaled_residual)
            each.append(Counter({what: itemsize * count for what, count in sent.items()}))
    longest = [max(messages(terms).values(), default=0) for terms in each]
    together = waves(longest) if packed else [[index] for index in range(len(each))]
    return [sum((each[index] for index in wave), Counter()) for wave in together]


def gathered_bytes(shards: Sequence[Shard]) -> int:
    """Bytes that FSDP2 makes whole at once, where each layer and then the model is wrapped.

    The rest of the model, with its gradients, from its first use to the end of the backward pass; beside it two layers
    (the second is gathered while the first computes), and one layer's gradients until they are reduced.
    """
    units = bytes_by_unit(shards)
    rest = units.pop("", 0)
    return 2 * rest + 3 * max(units.values(), default=0)

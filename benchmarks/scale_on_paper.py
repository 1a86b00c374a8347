"""Memory and traffic of large models, from the code that `ldadam plan` and the step itself plan with.

    python benchmarks/scale_on_paper.py

Prints the tables of docs/distributed.md. Llamas of 7B, 70B and 405B weights in bfloat16, the rank a sixteenth of the
shorter side of each matrix, everything but the matrices of the layers by AdamW; without activations. A device sends
each number of an all-reduce about twice, by the ring algorithm; gradients in bfloat16, factors in float32.

Dion: by table 1 of arXiv 2504.05295v1, for a matrix of m x n, m <= n, at rank r: a state of m n + n r numbers; of m n
numbers, (m + n) r are sent where gradients are averaged, and (m + 1) r where weights are sharded. Its state is counted
in bfloat16, as AdamW's is, and as evenly divided. LDAdamW's moments and bases are float32.
"""

import warnings
from collections.abc import Iterator

from ldadam import LDAdamWarning, plan
from ldadam.distributed.plan import Collective
from ldadam.hyperparameters import resolve
from ldadam.optimizer import LDAdamW, layout_of
from ldadam.planner import Plan
from ldadam.planner.models import find_source, model_of
from ldadam.planner.parts import GIB

MODELS = ("7b", "70b", "405b")
DEVICES = (8, 64, 1024)
REPLICAS = 8
RANK = 1 / 16
BF16, FLOAT32 = 2, 4


def planned(model: str, **options: object) -> Plan:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LDAdamWarning)
        return plan(model, rank=RANK, dtype="bfloat16", **options)


def matrices(model: str) -> Iterator[tuple[int, int, int]]:
    """m, n and r of each low-rank matrix, m <= n."""
    found = model_of(find_source(model), rank=RANK, dtype=None)
    for index, group in enumerate(LDAdamW(found.groups, rank=RANK).param_groups):
        for param in group["params"]:
            layout = layout_of(param, resolve(group, index))
            if layout is not None:
                yield min(layout.m, layout.n), max(layout.m, layout.n), layout.rank


def sent(numbers: int, *, devices: int, itemsize: int = FLOAT32) -> float:
    """GiB that each device sends to all-reduce these numbers."""
    return Collective("all_reduce", "", numbers * itemsize, 1).sent_bytes(devices) / GIB


def sharded_row(model: str, devices: int) -> list[str]:
    """What a device holds and sends under FSDP2 over all devices, in GiB."""
    found = planned(model, devices=devices)
    in_codes = planned(model, devices=devices, error_dtype="int8").footprint.state.total
    ours, adamw = found.footprint, next(each for each in found.footprints if each.optimizer == "adamw")
    sizes = list(matrices(model))
    dense = adamw.state.total - sum(2 * BF16 * m * n for m, n, _ in sizes) / devices
    dion = dense + sum(BF16 * (m * n + n * r) for m, n, r in sizes) / devices
    of_step = [each for each in found.traffic if each.phase == "step"]
    of_passes = [each for each in found.traffic if each.phase != "step"]
    ours_sent, fsdp_sent = (sum(each.sent_bytes(devices) for each in some) / GIB for some in (of_step, of_passes))
    gib = [ours.weights + ours.gradients, adamw.state.total, dion, ours.state.total, in_codes, ours.messages]
    numbers = [each / GIB for each in gib]
    numbers += [fsdp_sent, sent(sum((m + 1) * r for m, _, r in sizes), devices=devices), ours_sent]
    return [model, str(devices), *(f"{number:.2f}" for number in numbers), str(sum(each.count for each in of_step))]


def replicated_row(model: str) -> list[str]:
    """What each of several copies of a model sends to the others for its low-rank matrices, in GiB."""
    sizes = list(matrices(model))
    found = planned(model, devices=REPLICAS, sharding="compressed")
    ours = [each for each in found.traffic if each.phase == "step"]
    numbers = [
        sent(sum(m * n for m, n, _ in sizes), devices=REPLICAS, itemsize=BF16),
        sent(sum((m + n) * r for m, n, r in sizes), devices=REPLICAS),
        sum(each.sent_bytes(REPLICAS) for each in ours) / GIB,
    ]
    return [model, *(f"{number:.2f}" for number in numbers), str(sum(each.count for each in ours))]


def table(headings: list[str], rows: list[list[str]]) -> str:
    """In Markdown."""
    return "\n".join(f"| {' | '.join(row)} |" for row in [headings, ["---", *["---:"] * (len(headings) - 1)], *rows])


def tables() -> list[str]:
    """Sharded over all devices; and between copies of a model."""
    held = ["weights, gradients", "AdamW", "Dion", "LDAdamW", "LDAdamW, int8 E", "longest message"]
    sends = ["FSDP2 sends", "Dion adds", "LDAdamW adds", "all-reduces"]
    sharded = [sharded_row(model, devices) for model in MODELS for devices in DEVICES]
    replicated = [replicated_row(model) for model in MODELS]
    return [
        table(["model", "devices", *held, *sends], sharded),
        table(["model", "gradients", "Dion", "LDAdamW", "all-reduces"], replicated),
    ]


if __name__ == "__main__":
    print("\n\n".join(tables()))

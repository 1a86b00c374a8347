"""A run that is saved and resumed under other engines and numbers of processes goes on as if nothing had happened."""

import functools
from typing import Any

import pytest
import torch

from builders import distance
from distributed import engines
from distributed.checkpoint_runs import leg
from distributed.engines import ENGINES
from distributed.processes import in_processes
from tolerances import TOLERANCES

STEPS_OF_LEG = 4
# Each arrow is a save and a load: more processes, fewer, another way to divide, and none.
RESHARDED = [None, "fsdp, 2", "fsdp, 4", "hsdp, 2 x 2", "ddp, 2", "replicated, 2", None]
# Buffers that differ between ranks are saved as their mean, and begin as that mean on each.
WITH_COMPRESSED = ["compressed, 2", None, "fsdp, 2", "compressed, 4", "ddp, 2", "compressed fsdp, 2 x 2", None]
WITH_TENSOR_PARALLEL = ["fsdp, 2", "fsdp and tp, 2 x 2", "tp, 2", "fsdp, 4", None]


@functools.cache
def uninterrupted(num_steps: int, options: tuple[tuple[str, Any], ...]) -> list[dict[str, torch.Tensor]]:
    model = engines.build("net", torch.float64)
    optimizer = engines.optimizer_of(model, kind="net", **dict(options))
    weights: list[dict[str, torch.Tensor]] = []
    engines.train(model, optimizer, range(num_steps), after_step=lambda: weights.append(engines.weights_of(model)))
    return weights


@pytest.mark.parametrize(
    ("route", "way", "options"),
    [
        (RESHARDED, "sharded", {}),
        (RESHARDED, "full", {}),
        (RESHARDED, "plain", {}),
        pytest.param(WITH_TENSOR_PARALLEL, "sharded", {}, marks=pytest.mark.slow),
        (WITH_TENSOR_PARALLEL, "flattened", {}),
        pytest.param(WITH_TENSOR_PARALLEL, "full", {}, marks=pytest.mark.slow),
        (WITH_COMPRESSED, "sharded", {}),
        (WITH_COMPRESSED, "full", {}),
        (RESHARDED, "sharded", {"error_dtype": "int8"}),
        pytest.param(RESHARDED, "full", {"error_dtype": "int4", "skip_nonfinite": True}, marks=pytest.mark.slow),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(str(part) for part in value) or "defaults",
)
def test_a_run_goes_on_under_another_engine(route, way, options, tmp_path):
    expected = uninterrupted(STEPS_OF_LEG * len(route), tuple(options.items()))
    for number, engine in enumerate(route):
        args = engine, way, options, number * STEPS_OF_LEG, (number + 1) * STEPS_OF_LEG, tmp_path
        for of_rank in [leg(*args)] if engine is None else in_processes(leg, ENGINES[engine].world_size, *args):
            for step, weights in enumerate(of_rank, start=number * STEPS_OF_LEG):
                for name, whole in expected[step].items():
                    far = distance(weights[name], whole)
                    assert far <= TOLERANCES["float64 trajectory"], f"{name} after step {step + 1}, under {engine}"

"""PyTorch's own engines, with models that train on parts of each batch, move as one process with all of it."""

import functools

import pytest
import torch

from builders import distance
from distributed import engines
from distributed.engines import ENGINES
from distributed.processes import in_processes
from tolerances import TOLERANCES

NUM_STEPS = 4
alone = functools.cache(lambda kind, dtype, clip: engines.run(None, kind, dtype, NUM_STEPS, num_micro=2, clip=clip))


def together(engine: str, kind: str, dtype: torch.dtype, clip: float | None) -> list[dict]:
    job = functools.partial(engines.run, num_micro=2, clip=clip)
    return in_processes(job, ENGINES[engine].world_size, engine, kind, dtype, NUM_STEPS)


def clip_of(engine: str) -> float | None:
    """torch's `clip_grad_norm_` takes no parameters of several meshes, DTensors beside tensors, or local gradients."""
    return None if "tp" in engine or "compressed" in engine else 0.5


def assert_same_run(actual: dict, expected: dict, tolerance: float) -> None:
    for step, (weights, whole) in enumerate(zip(actual["weights"], expected["weights"], strict=True)):
        for name, value in whole.items():
            assert distance(weights[name], value) <= tolerance, f"{name} after step {step + 1}"


@pytest.mark.parametrize("engine", [name for name in ENGINES if "bfloat16" not in name])
def test_an_engine_trains_as_one_process(engine):
    """With micro-batches, clipping where torch has it, and uneven shards; the state, gathered, is the same as well."""
    expected, tolerance = alone("net", torch.float64, clip_of(engine)), TOLERANCES["float64 trajectory"]
    for of_rank in together(engine, "net", torch.float64, clip_of(engine)):
        assert_same_run(of_rank, expected, tolerance)
        for name, state in expected["state"].items():
            assert of_rank["state"][name].keys() == state.keys()
            for key, value in state.items():
                assert distance(of_rank["state"][name][key], value) <= tolerance, f"{key} of {name}"


def test_the_cases_have_uneven_empty_and_strided_shards():
    shards = [of_rank["lengths"] for of_rank in together("fsdp, 4", "net", torch.float64, 0.5)]
    assert 0 in shards[-1] and shards[0] != shards[-1]
    strided = together("fsdp and tp, 2 x 2", "net", torch.float64, None)[0]["placements"]
    assert any("_StridedShard" in placements for placements in strided)


@pytest.mark.parametrize("engine", ["fsdp, 2", "hsdp, 2 x 2", "tp, 2", "fsdp and tp, 2 x 2"])
def test_an_engine_trains_a_llama_as_one_process(engine):
    """Of transformers, whose norms are in float32 whatever the dtype."""
    expected = alone("llama", torch.float32, clip_of(engine))
    for of_rank in together(engine, "llama", torch.float32, clip_of(engine)):
        assert_same_run(of_rank, expected, TOLERANCES["float32 engine"])


@pytest.mark.parametrize(
    ("engine", "dtype", "tolerance"),
    [
        ("fsdp, 2", torch.float32, "float32 memory order"),
        ("fsdp in bfloat16, 2", torch.float32, "float32 memory order"),
        ("fsdp, 4", torch.bfloat16, "backend, bfloat16, many steps"),
    ],
    ids=str,
)
def test_given_the_engines_gradients_one_process_moves_as_the_shards_do(engine, dtype, tolerance):
    """Mixed precision too, where rounding makes the gradients of parts of a batch differ from those of the whole."""
    made = together(engine, "llama", dtype, 0.5)[0]
    model = engines.build("llama", dtype)
    optimizer = engines.optimizer_of(model, kind="llama")
    for weights, grads in zip(made["weights"], made["grads"], strict=True):
        for name, param in model.named_parameters():
            param.grad = grads[name].to(param.dtype)
        optimizer.step()
        for name, param in model.named_parameters():
            assert distance(weights[name], param) <= TOLERANCES[tolerance], name

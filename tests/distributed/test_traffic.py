"""What a step sends, counted where torch hands it to the process group: how many collectives, of how many numbers."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from distributed.engines import ENGINES, assemble, build, loss_of, optimizer_of, tokens_of, train
from distributed.processes import in_processes
from ldadam.distributed.plan import reductions
from ldadam.hyperparameters import resolve
from ldadam.layout import MatrixLayout
from ldadam.optimizer import layout_of


class Recorder(TorchDispatchMode):
    """Name and numbers of every collective, of DTensors or by hand."""

    def __init__(self):
        super().__init__()
        self.sent: list[tuple[str, int]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.namespace in ("c10d", "_c10d_functional") and "wait" not in func.__name__:
            tensors = args[0] if isinstance(args[0], (list, tuple)) else [args[0]]
            self.sent.append((func.overloadpacket.__name__, sum(tensor.numel() for tensor in tensors)))
        return func(*args, **(kwargs or {}))


def sent_by_step(engine: str, step: int, options: dict) -> list[tuple[str, int]]:
    """What this rank sends in `optimizer.step()` after `step` others."""
    model, optimizer, samples = assemble(engine, "llama", torch.float32, **options)
    train(model, optimizer, range(step), samples=samples)
    loss_of(model, tokens_of(step, 0, model.config.vocab_size)[samples]).backward()
    with Recorder() as recorder:
        optimizer.step()
    return recorder.sent


def layouts() -> list[MatrixLayout]:
    """Of the low-rank matrices of that Llama."""
    groups = enumerate(optimizer_of(build("llama", torch.float32), kind="llama").param_groups)
    found = (layout_of(param, resolve(group, index)) for index, group in groups for param in group["params"])
    return [layout for layout in found if layout is not None]


def planned() -> Counter[str]:
    """Numbers that all these matrices reduce, by what they are."""
    return sum((Counter(reductions(layout, "fsdp")) for layout in layouts()), Counter())


@pytest.mark.parametrize("engine", ["fsdp, 2", "fsdp, 4"])
def test_a_step_sends_what_is_planned_in_four_messages(engine):
    """However many matrices there are: all that is asked for at one point of a step travels together."""
    plan = planned()
    expected = [
        ("allreduce_", plan["U_minus'A"]),
        ("allreduce_", plan["largest of Y"]),
        ("allreduce_", plan["X"] + plan["U_minus"] + plan["A Y"] + plan["m_minus Y"]),
        ("allreduce_", plan["U'A"] + plan["U'U_minus"]),
    ]
    assert all(numbers for _, numbers in expected)
    for sent in in_processes(sent_by_step, ENGINES[engine].world_size, engine, 2, {}):
        assert sent == expected


def test_hsdp_sends_within_the_groups_that_share_a_matrix():
    """Replicas have the same gradient, so that nothing crosses between them."""
    two, four = (
        in_processes(sent_by_step, ENGINES[name].world_size, name, 2, {})[0] for name in ("fsdp, 2", "hsdp, 2 x 2")
    )
    assert two == four


def test_a_kept_subspace_sends_one_message():
    plan = planned()
    for sent in in_processes(sent_by_step, 2, "fsdp, 2", 2, {"update_interval": 4}):
        assert sent == [("allreduce_", plan["U_minus'A"])]


def test_the_first_step_of_small_matrices_sends_them_once():
    """For their singular vectors, as published: those of which ranks share the projected side, then the others."""
    plan = planned()
    shared, others = ([one for one in layouts() if one.transposed == flag] for flag in (False, True))
    expected = [
        plan["U_minus'A"],
        sum(one.m * one.n + one.m * one.rank for one in shared),
        sum(one.m * one.n for one in others),
        plan["U'A"] + plan["U'U_minus"],
    ]
    for sent in in_processes(sent_by_step, 2, "fsdp, 2", 0, {}):
        assert sent == [("allreduce_", numbers) for numbers in expected]

"""What a step sends, counted where torch hands it to the process group: how many collectives, of how many numbers."""

from collections import Counter
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

import ldadam
from distributed.engines import ENGINES, assemble, bare, build, loss_of, optimizer_of, tokens_of, train, weights_of
from distributed.processes import in_processes
from ldadam import LDAdamW
from ldadam.bench.traffic import Recorder
from ldadam.distributed import compress_gradients
from ldadam.distributed.plan import messages, reductions
from ldadam.hyperparameters import resolve
from ldadam.layout import MatrixLayout
from ldadam.optimizer import layout_of
from ldadam.planner.models import LLAMAS


def noted(recorder: Recorder) -> list[tuple[str, int]]:
    """Kind and numbers of every collective, in order."""
    return [(each.kind, each.numbers) for each in recorder.sent]


def sent_by_step(engine: str, step: int, options: dict) -> list[tuple[str, int]]:
    """What this rank sends in `optimizer.step()` after `step` others."""
    model, optimizer, samples = assemble(engine, "llama", torch.float32, **options)
    train(model, optimizer, range(step), samples=samples)
    loss_of(model, tokens_of(step, 0, bare(model).config.vocab_size)[samples]).backward()
    with Recorder() as recorder:
        optimizer.step()
    return noted(recorder)


def layouts() -> list[MatrixLayout]:
    """Of the low-rank matrices of that Llama."""
    groups = enumerate(optimizer_of(build("llama", torch.float32), kind="llama").param_groups)
    found = (layout_of(param, resolve(group, index)) for index, group in groups for param in group["params"])
    return [layout for layout in found if layout is not None]


def planned(sharding: str = "fsdp") -> Counter[str]:
    """Numbers that all these matrices reduce, by what they are."""
    return sum((Counter(reductions(layout, sharding)) for layout in layouts()), Counter())


@pytest.mark.parametrize("engine", ["fsdp, 2", "fsdp, 4"])
def test_a_step_sends_what_is_planned_in_four_messages(engine):
    """However many matrices there are: all that is asked for at one point of a step travels together."""
    sent_of = planned()
    expected = [
        ("all_reduce", sent_of["U_minus'A"]),
        ("all_reduce", sent_of["largest of Y"]),
        ("all_reduce", sent_of["X"] + sent_of["U_minus"] + sent_of["A Y"] + sent_of["m_minus Y"]),
        ("all_reduce", sent_of["U'A"] + sent_of["U'U_minus"]),
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


def test_compressed_ranks_send_three_messages():
    expected = [("all_reduce", numbers) for numbers in planned("compressed").values()]
    for sent in in_processes(sent_by_step, 2, "compressed, 2", 2, {}):
        assert sent == expected


@pytest.mark.parametrize("engine", ["ddp, 2", "compressed, 2"])
def test_ddp_sends_gradients_of_dense_parameters_and_without_compression_of_all(engine):
    model = build("llama", torch.float32)
    low_rank = sum(layout.m * layout.n for layout in layouts())
    total = sum(param.numel() for param in model.parameters())
    for sent in in_processes(sent_by_backward, 2, engine):
        assert sent == total - (low_rank if engine == "compressed, 2" else 0)


def sent_by_backward(engine: str) -> int:
    """Numbers that DDP averages."""
    model, _, samples = assemble(engine, "llama", torch.float32)
    loss = loss_of(model, tokens_of(0, 0, bare(model).config.vocab_size)[samples])
    with Recorder() as recorder:
        loss.backward()
    return sum(each.numbers for each in recorder.sent)


def one_layer(num_layers: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the low-rank matrices of the first layers of the 1b preset."""
    shapes = LLAMAS["1b"].weights()
    return {
        name: shape
        for name, shape in shapes.items()
        if any(name.startswith(f"model.layers.{layer}.") for layer in range(num_layers)) and len(shape) == 2
    }


def sent_with_shapes(shapes: dict[str, tuple[int, ...]], rank: int) -> list[tuple[str, int]]:
    """What the second step of compressed matrices of these shapes sends."""
    module = torch.nn.Module()
    for name, shape in shapes.items():
        module.register_parameter(name.replace(".", " "), torch.nn.Parameter(torch.zeros(shape)))
    optimizer = LDAdamW(module.parameters(), rank=rank)
    compress_gradients(module, optimizer)
    for param in module.parameters():
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(dist.get_rank()))
    optimizer.step()
    with Recorder() as recorder:
        optimizer.step()
    return noted(recorder)


def test_the_number_of_messages_does_not_depend_on_the_number_of_layers():
    """Matrices of the 1b model, a 32nd as large."""
    for num_layers in (1, 3):
        shapes = {name: (rows // 32, cols // 32) for name, (rows, cols) in one_layer(num_layers).items()}
        plan = ldadam.plan(shapes, rank=1, devices=2, sharding="compressed")
        for sent in in_processes(sent_with_shapes, 2, shapes, 1):
            assert [4 * numbers for _, numbers in sent] == [each.num_bytes for each in plan.traffic[1:]]
            assert len(sent) == 3


def test_a_kept_subspace_sends_one_message():
    sent_of = planned()
    for sent in in_processes(sent_by_step, 2, "fsdp, 2", 2, {"update_interval": 4}):
        assert sent == [("all_reduce", sent_of["U_minus'A"])]


def test_ranks_agree_on_what_to_skip_in_one_message():
    """A flag for each parameter, dense or not, beside the four messages of every step."""
    num_params = sum(1 for _ in build("llama", torch.float32).parameters())
    for sent in in_processes(sent_by_step, 2, "fsdp, 2", 2, {"skip_nonfinite": True}):
        assert sent[0] == ("all_reduce", num_params) and len(sent) == 5


def test_the_first_step_of_small_matrices_sends_them_once():
    """For their singular vectors, as published: those of which ranks share the projected side, then the others.

    Before, ranks compare what the step is to be: two numbers.
    """
    sent_of = planned()
    shared, others = ([one for one in layouts() if one.transposed == flag] for flag in (False, True))
    expected = [
        2,
        sent_of["U_minus'A"],
        sum(one.m * one.n + one.m * one.rank for one in shared),
        sum(one.m * one.n for one in others),
        sent_of["U'A"] + sent_of["U'U_minus"],
    ]
    for sent in in_processes(sent_by_step, 2, "fsdp, 2", 0, {}):
        assert sent == [("all_reduce", numbers) for numbers in expected]


def bounded(bound: int, step: int, engine: str = "fsdp, 2") -> tuple[list[tuple[str, int]], dict[str, Tensor]]:
    """What a step sends where a message has at most `bound` bytes, and the weights after it."""
    model, optimizer, samples = assemble(engine, "llama", torch.float32)
    with patch("ldadam.distributed.plan.MAX_MESSAGE_BYTES", bound):
        train(model, optimizer, range(step), samples=samples)
        loss_of(model, tokens_of(step, 0, bare(model).config.vocab_size)[samples]).backward()
        with Recorder() as recorder:
            optimizer.step()
    return noted(recorder), weights_of(model)


@pytest.mark.parametrize("step", [0, 2])
def test_bounded_messages_have_the_bits_of_unbounded_ones(step):
    """Between two ranks, whose sums have one order; the first step sends whole matrices."""
    if step:
        bound = max(4 * max(messages(reductions(one, "fsdp")).values()) for one in layouts())
    else:
        bound = max(4 * (one.m * one.n + one.m * one.rank) for one in layouts())
    (few, expected), _ = in_processes(bounded, 2, 2**30, step)
    for sent, weights in in_processes(bounded, 2, bound, step):
        assert len(sent) > 2 * len(few)
        assert sum(numbers for _, numbers in sent) == sum(numbers for _, numbers in few)
        assert max(4 * numbers for _, numbers in sent) <= bound < max(4 * numbers for _, numbers in few)
        assert all(torch.equal(weights[name], value) for name, value in expected.items())


def test_a_parameter_that_exceeds_the_bound_is_stepped_alone():
    for sent, _ in in_processes(bounded, 2, 1, 2):
        assert len(sent) == sum(2 if one.transposed else 3 for one in layouts())


@pytest.mark.parametrize("sharding", ["fsdp", "compressed"])
@pytest.mark.parametrize("bound", [2**30, 10_000])
def test_the_planner_counts_the_messages_of_a_step(sharding, bound):
    with patch("ldadam.distributed.plan.MAX_MESSAGE_BYTES", bound):
        model, rank = build("llama", torch.float32), layouts()[0].rank
        found = ldadam.plan(model, rank=rank, devices=2, device="cpu", sharding=sharding)
    of_step = [each for each in found.traffic if each.phase == "step"]
    for sent, _ in in_processes(bounded, 2, bound, 2, f"{sharding}, 2"):
        assert sum(each.count for each in of_step) == len(sent)
        assert sum(each.num_bytes for each in of_step) == sum(4 * numbers for _, numbers in sent)
        assert found.footprint.messages == max(4 * numbers for _, numbers in sent)

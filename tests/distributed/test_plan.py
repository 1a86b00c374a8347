"""What is planned for shards is what sharded parameters keep and send."""

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.nn import Parameter
from torch.testing._internal.distributed.fake_pg import FakeStore

from builders import parameter, quiet
from ldadam import backends, plan
from ldadam.backends.partial import Shards
from ldadam.backends.update import ParamUpdate
from ldadam.distributed.plan import reductions, shard_layout
from ldadam.distributed.sharded import create_state as create_shards
from ldadam.hyperparameters import resolve
from ldadam.optimizer import layout_of
from ldadam.state import create_state


@pytest.fixture
def mesh():
    """Four devices of which this process is the first; nothing is sent."""
    dist.init_process_group("fake", rank=0, world_size=4, store=FakeStore())
    yield init_device_mesh("cpu", (4,))
    dist.destroy_process_group()


@pytest.mark.parametrize("error_dtype", ["bfloat16", "int4"])
def test_planned_state_of_a_shard_is_that_of_the_first_rank(mesh, error_dtype):
    shapes = {"wide.weight": (18, 40), "tall.weight": (42, 16), "stack": (6, 20, 30), "embed.weight": (50, 12)}
    named = [
        (name, Parameter(distribute_tensor(parameter(*shape), mesh, [Shard(0)]))) for name, shape in shapes.items()
    ]
    optimizer = quiet(named, rank=4, error_dtype=error_dtype)
    live = 0
    for index, group in enumerate(optimizer.param_groups):
        hyper = resolve(group, index)
        for param in group["params"]:
            state = create_shards(param, layout_of(param, hyper), hyper)
            local = [value.to_local() if isinstance(value, DTensor) else value for value in state.values()]
            live += sum(value.nbytes for value in local)
    found = plan(shapes, rank=4, error_dtype=error_dtype, devices=4, device="cpu")
    assert found.footprint.state.total == live
    assert found.footprint.weights == sum(param.to_local().nbytes for _, param in named)


@pytest.mark.parametrize("scaled_residual", [False, True])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24)], ids=["wide", "tall"])
def test_planned_reductions_are_what_a_step_asks_for(shape, scaled_residual):
    hyper = resolve(quiet([parameter(*shape)], rank=4, scaled_residual=scaled_residual).param_groups[0], 0)
    whole = layout_of(parameter(*shape), hyper)
    layout = shard_layout(whole, 4)
    block = parameter(*layout.shape)
    state = create_state(block, layout, hyper)
    rows, cols = (0, layout.m), (0, layout.n)
    groups = ((), ("a group",)) if whole.transposed else (("a group",), ())
    shards = Shards(*groups, rows, cols, (whole.m, whole.n))
    update = ParamUpdate(block, torch.ones_like(block), state, 2.0, hyper, layout, shards=shards)
    ((steps, *_),) = backends.shared_steps([update], backend="batched")
    assert asked_for(steps, shards) == dict(reductions(whole, "fsdp", adds_residual=scaled_residual))


def asked_for(steps, shards):
    """Numbers that a step asks other ranks for, by name."""
    found, values = {}, None
    with torch.no_grad():
        while True:
            try:
                partials = next(steps) if values is None else steps.send(values)
            except StopIteration:
                return found
            for partial in partials:
                if shards.m if partial.side == "m" else shards.n:
                    found[partial.name] = partial.value.numel()
            values = [partial.value for partial in partials]

"""Runs of compressed data parallelism in a process group, and what is said when they go wrong."""

import math
from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from typing import Any
from unittest.mock import patch

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from builders import normal, quiet
from distributed.engines import (
    ENGINES,
    Net,
    assemble,
    bare,
    build,
    full,
    mesh_of,
    optimizer_of,
    spread,
    train,
    weights_of,
)
from ldadam import LDAdamW, step_in_backward
from ldadam.bench.traffic import Recorder
from ldadam.distributed import clip_grad_norm_, compress_gradients


class Mixture(nn.Module):
    """A stack of experts, a convolution, a matrix of the module itself, and two modules with one weight."""

    def __init__(self):
        super().__init__()
        self.experts = nn.Parameter(normal(3, 10, 8, dtype=torch.float64) / 4)
        self.weight = nn.Parameter(normal(8, 6, seed=1, dtype=torch.float64) / 4)
        self.conv = nn.Conv2d(1, 8, (3, 2), dtype=torch.float64)
        self.first, self.second = (nn.Linear(7, 7, dtype=torch.float64) for _ in range(2))
        self.second.weight = self.first.weight
        with torch.no_grad():
            for seed, param in enumerate(self.parameters(), start=2):
                param.copy_(normal(*param.shape, seed=seed, dtype=torch.float64) / 4)

    def forward(self, inputs: Tensor) -> Tensor:
        """A loss () of inputs (batch, 10)."""
        mixed = torch.tanh(torch.einsum("bi,eij->bej", inputs, self.experts)).mean(1)
        image = torch.tanh(mixed @ self.weight)[:, None, :, None] * inputs[:, None, None, :4]
        hidden = torch.tanh(self.conv(image)).mean((2, 3))[:, :7]
        return (self.second(torch.tanh(self.first(hidden))) - inputs[:, :7]).square().mean()


def mixture_weights(world_size: int, num_steps: int, **engine: Any) -> list[Tensor]:
    """Final weights of a `Mixture`, after steps with this rank's part of each batch; alone with a world size of 1."""
    model = wrapped = Mixture()
    optimizer = quiet(model.parameters(), rank=2, lr=1e-2)
    rank = dist.get_rank() if world_size > 1 else 0
    if world_size > 1:
        compress_gradients(model, optimizer)
        wrapped = DistributedDataParallel(model, **engine)
    for step in range(num_steps):
        inputs = normal(8, 10, seed=step, dtype=torch.float64)
        wrapped(inputs[rank::world_size]).backward()
        optimizer.step()
        optimizer.zero_grad()
    return [param.detach() for param in model.parameters()]


def message_of(call: Callable[[], object]) -> str:
    """What is said when a call is refused; a call that is not says nothing."""
    try:
        call()
    except (TypeError, ValueError, RuntimeError) as error:
        return str(error)
    return ""


def refusals() -> dict[str, str]:
    """What is said of arguments that do not fit, by a word for each."""

    def fresh() -> tuple[nn.Module, LDAdamW]:
        model = build("net", torch.float64)
        return model, optimizer_of(model, kind="net")

    model, optimizer = fresh()
    compress_gradients(model, optimizer)
    other, twice = fresh()[0], fresh()
    sharded, _ = spread(build("net", torch.float64), ENGINES["fsdp, 2"])
    of_sharded = optimizer_of(sharded, kind="net")
    drawn = fresh()
    drawn[1].param_groups[0]["proj_method"] = "svd_lowrank"
    compress_gradients(*drawn)
    moved = fresh()
    moved[1].param_groups[0]["scaled_residual"] = True
    compress_gradients(*moved)
    clipped = fresh()
    compress_gradients(*clipped)
    step_in_backward(clipped[1], clip_norm=1.0)
    filters = nn.Conv2d(8, 6, 3).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    of_filters = quiet(filters.named_parameters(), rank=2)
    compress_gradients(filters, of_filters)
    filters.weight.grad = torch.ones_like(filters.weight)
    calls = {
        "copied": lambda: deepcopy(optimizer),
        "channels last": of_filters.step,
        "adam": lambda: compress_gradients(other, torch.optim.Adam(other.parameters())),
        "wrapped": lambda: compress_gradients(DistributedDataParallel(other), fresh()[1]),
        "never": lambda: compress_gradients(*fresh(), check_every=0),
        "elsewhere": lambda: compress_gradients(other, fresh()[1]),
        "twice": lambda: [compress_gradients(*twice) for _ in range(2)],
        "no group": lambda: compress_gradients(sharded, of_sharded),
        "shards": lambda: compress_gradients(sharded, of_sharded, group=dist.group.WORLD),
        "drawn": lambda: train(*drawn, range(1)),
        "moved": lambda: train(*moved, range(1)),
        "clipped": lambda: train(*clipped, range(1)),
    }
    return {word: message_of(call) for word, call in calls.items()}


def refused_hsdp() -> str:
    """A parameter that FSDP2 already averages over the group."""
    engine = ENGINES["hsdp, 2 x 2"]
    model, _ = spread(build("net", torch.float64), engine)
    group = mesh_of(engine)["replicate"].get_group()
    return message_of(lambda: compress_gradients(model, optimizer_of(model, kind="net"), group=group))


def ignored() -> tuple[list[str], int]:
    """What DDP leaves alone of a module that had a list already, and how many entries its buckets have."""
    model = Mixture()
    optimizer = quiet(model.named_parameters(), rank=2)
    model._ddp_params_and_buffers_to_ignore = ["first.bias"]
    compress_gradients(model, optimizer)
    wrapped = DistributedDataParallel(model)
    names = sorted(wrapped.parameters_to_ignore)
    return names, sum(param.numel() for param in wrapped._module_parameters)


def first_weights(engine: str) -> list[Tensor]:
    """Local weights of ranks that began with different ones, after they are compressed."""
    axes = ENGINES[engine]
    torch.manual_seed(dist.get_rank())
    model, _ = spread(Net(), axes)
    compress_gradients(model, optimizer_of(model, kind="net"), group=mesh_of(axes)["compressed"].get_group())
    model = model if "shard" in axes.axes else DistributedDataParallel(model)
    return [getattr(param, "to_local", lambda param=param: param)().detach() for param in model.parameters()]


def forgotten_wrap() -> str:
    """What the first step says where nobody averages dense gradients."""
    model = build("net", torch.float64)
    optimizer = optimizer_of(model, kind="net")
    compress_gradients(model, optimizer)
    return message_of(lambda: train(model, optimizer, range(1), samples=slice(dist.get_rank(), None, 2)))


def changed_weight(engine: str, check_every: int | None, level: str, num_steps: int) -> tuple[int, str]:
    """After how many steps one changed bit on the last rank is found, and what is then said."""
    axes, before = ENGINES[engine], dist.get_debug_level()
    model, samples = spread(build("net", torch.float64), axes)
    optimizer = optimizer_of(model, kind="net")
    compress_gradients(model, optimizer, group=mesh_of(axes)["compressed"].get_group(), check_every=check_every)
    wrapped = model if "shard" in axes.axes else DistributedDataParallel(model)
    dist.set_debug_level(getattr(dist.DebugLevel, level))
    try:
        for step in range(num_steps):
            if step == 2 and dist.get_rank() == dist.get_world_size() - 1:
                weight = model.get_parameter("up.weight").data
                # A difference in the last bit may be rounded away in the steps until it is looked for.
                getattr(weight, "_local_tensor", weight).view(torch.int64)[0, 0] += 1 << 20
            message = message_of(lambda step=step: train(wrapped, optimizer, range(step, step + 1), samples=samples))
            if message:
                return step + 1, message
    finally:
        dist.set_debug_level(before)
    return num_steps, ""


def saved_by_one_rank() -> str:
    """What the only rank that calls `state_dict` is told when the group's time is over; "" elsewhere."""
    group = dist.new_group(timeout=timedelta(seconds=1))
    model = build("net", torch.float64)
    optimizer = optimizer_of(model, kind="net")
    compress_gradients(model, optimizer, group=group)
    train(DistributedDataParallel(model, process_group=group), optimizer, range(1))
    message = message_of(optimizer.state_dict) if dist.get_rank() == 0 else ""
    dist.barrier()
    return message


def saved_buffers(options: dict[str, Any]) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Error buffers before and after `state_dict`, and weights of the next steps and of those of a resumed run."""
    model, optimizer, samples = assemble("compressed, 2", "net", torch.float64, **options)
    train(model, optimizer, range(3), samples=samples)
    before, saved = buffers(optimizer), optimizer.state_dict()
    after = buffers(optimizer)
    other, resumed, _ = assemble("compressed, 2", "net", torch.float64, **options)
    bare(other).load_state_dict(bare(model).state_dict())
    resumed.load_state_dict(saved)
    for one, its in ((model, optimizer), (other, resumed)):
        train(one, its, range(3, 6), samples=samples)
    return before, after, weights(model), weights(other)


def sent_by_state_dict(bound: int) -> list[int]:
    """Numbers in each message of `state_dict`, where a message has at most `bound` numbers."""
    model, optimizer, samples = assemble("compressed, 2", "net", torch.float64, error_dtype="int8")
    train(model, optimizer, range(1), samples=samples)
    with patch("ldadam.distributed.compressed.MESSAGE_ENTRIES", bound), Recorder() as recorder:
        optimizer.state_dict()
    return [each.numbers for each in recorder.sent]


def buffers(optimizer: LDAdamW) -> list[Tensor]:
    states = [optimizer.state[param] for param in optimizer.replicas]
    return [state[key].clone() for state in states for key in ("error_buffer", "error_scale") if key in state]


def weights(model: nn.Module) -> list[Tensor]:
    return [param.detach().clone() for param in model.parameters()]


def first_steps(engine: str, *, is_primed: bool) -> list[Tensor]:
    """Weights after steps of which the first is at a learning rate of zero, with a gradient on rank 0 alone."""
    model, optimizer, _ = assemble(engine, "net", torch.float64)
    if is_primed:
        get_optimizer_state_dict(model, optimizer)
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * step
        for number, param in enumerate(bare(model).parameters()):
            param.grad = normal(*param.shape, seed=10 * step + number, dtype=torch.float64)
            if param in optimizer.replicas and step == 0:
                param.grad *= dist.get_world_size() if dist.get_rank() == 0 else 0
        optimizer.step()
    return weights(model)


def skipped() -> tuple[list[Tensor], list[float], list[float]]:
    """Weights after steps of which rank 1 has a NaN in one gradient, how far that weight moves, and steps refused."""
    model, optimizer, samples = assemble("compressed, 2", "net", torch.float64, skip_nonfinite=True)
    weight = bare(model).get_parameter("up.weight")
    before, moved = weight.detach().clone(), []

    def spoil() -> None:
        if dist.get_rank() == 1 and len(moved) == 1:
            weight.grad[0, 0] = math.nan

    def measure() -> None:
        moved.append((weight.detach() - before).norm().item())
        before.copy_(weight.detach())

    train(model, optimizer, range(3), samples=samples, before_step=spoil, after_step=measure)
    return weights(model), moved, [optimizer.state[param]["num_skipped"].item() for param in optimizer.replicas]


def clipped(engine: str | None, max_norm: float, num_steps: int) -> tuple[list[Tensor], list[Tensor]]:
    """The norm of each step, of which the first is not clipped, and the weights at the end."""
    model, optimizer, samples = assemble(engine, "net", torch.float64)
    norms: list[Tensor] = []
    train(
        model,
        optimizer,
        range(num_steps),
        samples=samples,
        before_step=lambda: norms.append(clip_grad_norm_(optimizer, max_norm if norms else math.inf)),
    )
    return norms, list(weights_of(model).values())


def grown(engine: str | None, num_steps: int) -> list[Tensor]:
    """Weights of a run whose optimizer is given one layer of the module after two steps."""
    model, samples = build("net", torch.float64), slice(None)
    if engine is not None:
        model, samples = spread(model, ENGINES[engine])
    late = list(model.get_submodule("down").parameters())
    optimizer = quiet([param for param in model.parameters() if not any(param is one for one in late)], rank=2, lr=1e-2)
    wrapped = model if engine is None else compress(model, optimizer, engine)
    train(wrapped, optimizer, range(2), samples=samples)
    optimizer.add_param_group({"params": late})
    train(wrapped, optimizer, range(2, num_steps), samples=samples)
    return list(weights_of(model).values())


def compress(model: nn.Module, optimizer: LDAdamW, engine: str) -> nn.Module:
    """The module, or DDP around it where nothing shards it."""
    axes = ENGINES[engine]
    compress_gradients(model, optimizer, group=mesh_of(axes)["compressed"].get_group())
    return model if "shard" in axes.axes else DistributedDataParallel(model)


def forgotten_layer(kind: str) -> tuple[str, str, Tensor]:
    """What a step says of a sharded layer that joins later, before and after it is compressed, too; its weight then."""
    mesh = mesh_of(ENGINES["compressed fsdp, 2 x 2"])
    optimizer = assemble("compressed fsdp, 2 x 2", "net", torch.float64)[1]
    layer = nn.Linear(9, 6, dtype=torch.float64) if kind == "low-rank" else nn.LayerNorm(6, dtype=torch.float64)
    fully_shard(layer, mesh=mesh["shard"])
    optimizer.add_param_group({"params": list(layer.named_parameters())})
    for param in layer.parameters():
        param.grad = torch.full_like(param, 1.0 + dist.get_rank())
    before = message_of(optimizer.step)
    compress_gradients(layer, optimizer, group=mesh["compressed"].get_group())
    after = message_of(optimizer.step)
    return before, after, full(layer.weight)


class Experts(nn.Module):
    """Stacks of so few matrices that some ranks hold none."""

    def __init__(self):
        super().__init__()
        self.one, self.three = (
            nn.Parameter(normal(count, 10, 8, seed=count, dtype=torch.float64) / 4) for count in (1, 3)
        )
        self.bias = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, inputs: Tensor) -> Tensor:
        """A loss () of inputs (batch, 10)."""
        mixed = [torch.tanh(torch.einsum("bi,eij->bej", inputs, stack)).mean(1) for stack in (self.one, self.three)]
        return (mixed[0] - mixed[1] + self.bias - inputs[:, :8]).square().mean()


def expert_weights(engine: str | None, options: dict[str, Any]) -> list[Tensor]:
    """Weights of `Experts` after steps, of which the later are clipped and follow a `state_dict`."""
    model, samples = Experts(), slice(None)
    if engine is not None:
        axes = {name: size for name, size in ENGINES[engine].axes.items() if name != "compressed"}
        fully_shard(model, mesh=mesh_of(ENGINES[engine])[tuple(axes)])
        samples = slice(dist.get_rank(), None, dist.get_world_size())
    optimizer = quiet(model.parameters(), rank=2, lr=1e-2, **options)
    if engine is not None and "compressed" in engine:
        compress(model, optimizer, engine)
    for step in range(4):
        model(normal(8, 10, seed=step, dtype=torch.float64)[samples]).backward()
        if step > 1:
            optimizer.state_dict()
            clip_grad_norm_(optimizer, 0.05)
        optimizer.step()
        optimizer.zero_grad()
    return list(weights_of(model).values())

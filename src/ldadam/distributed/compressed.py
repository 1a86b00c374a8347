"""Compressed data parallelism: ranks keep the gradients of low-rank parameters to themselves.

Rank k has A_k = G_k + E_k. A step reads A through U_minus'A, A Y and U'A alone, which are linear in it, and every E_k
loses the same. So a step that averages these three factors is that of the mean gradient, and the mean of all E_k is the
buffer of one process that has the whole batch.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from ldadam import error_buffer
from ldadam.distributed.blocks import block_of, is_sharded, mesh_groups, refuse_other_optimizers
from ldadam.distributed.plan import waves
from ldadam.distributed.reduction import all_reduce_
from ldadam.layout import math_dtype

if TYPE_CHECKING:
    from ldadam.optimizer import LDAdamW

# The largest number of entries that one all-reduce of gradients or error buffers sends: 64 MiB of float32.
MESSAGE_ENTRIES = 2**24

# Steps between two comparisons of the ranks' weights in torch's debug mode.
DEBUG_CHECK_EVERY = 100


@torch.no_grad()
def compress_gradients(
    module: nn.Module,
    optimizer: "LDAdamW",
    *,
    group: dist.ProcessGroup | None = None,
    check_every: int | None = None,
) -> None:
    """Train replicas of a module without averaging the gradients of its low-rank parameters.

    Call it once, with the very module that `DistributedDataParallel` will wrap, after the optimizer is built. DDP then
    averages gradients of dense parameters alone and allocates nothing for the others, which stay on their rank.
    `optimizer.step()` averages r (2n + m) numbers of an m x n matrix at rank r instead of m n, and is, up to rounding,
    the step of the mean gradient. Weights stay the same on all ranks, bit by bit. Gradients accumulate with `no_sync()`
    or without, and `step_in_backward` works.

    `fully_shard` a module over the shard axis of a mesh alone, and pass the replicate axis as `group`, to compress what
    HSDP sends between its replicas. No DDP is needed then: the optimizer averages gradients of dense parameters too.

    Every rank holds an error buffer of its own. `optimizer.state_dict()` replaces them by their mean, so that the state
    of each rank is that of the whole run: all ranks must call it together.

    Args:
        module: not yet wrapped by DDP; its parameters are made those of the group's first rank, and those that the
            optimizer projects are put on DDP's list of parameters to ignore.
        optimizer: of the module's parameters.
        group: ranks that hold the same weights and have batches of their own; the one that DDP is given. None is the
            default group. Sharded modules need it, such as `mesh["replicate"].get_group()`.
        check_every: steps from one comparison of all ranks' weights to the next. None compares them after the first
            step, which finds a forgotten DDP, and every 100 steps where TORCH_DISTRIBUTED_DEBUG is set.

    Raises:
        TypeError: not an `LDAdamW`, or a module that is wrapped already.
        ValueError: `check_every` is no int >= 1, the optimizer has nothing to reduce of the module or reduces it
            already, or a sharded module comes without a group.
        NotImplementedError: the engine that shards the module already averages over ranks of the group.
        RuntimeError: in `step()`, on every rank, where weights differ between ranks; in `step()` and `state_dict()`,
            where another rank does not take part.

    Example:
        >>> import torch
        >>> import torch.distributed as dist
        >>> from ldadam import LDAdamW
        >>> from ldadam.distributed import compress_gradients
        >>> dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
        >>> model = torch.nn.Linear(64, 32)
        >>> optimizer = LDAdamW(model.named_parameters(), lr=1e-3, rank=8)
        >>> compress_gradients(model, optimizer)
        >>> model = torch.nn.parallel.DistributedDataParallel(model)
        >>> model(torch.randn(4, 64)).square().mean().backward()
        >>> optimizer.step()
        >>> dist.destroy_process_group()
    """
    _refuse_arguments(module, optimizer, check_every)
    names: dict[Tensor, str] = {param: name for name, param in module.named_parameters()}
    layouts = optimizer.layouts()
    group = _group_of(names, group)
    low_rank = [param for param in names if layouts.get(param) is not None]
    # What no DDP sees, nobody else makes equal or averages.
    without_ddp = list(names) if any(map(is_sharded, names)) else low_rank
    _refuse_params([param for param in without_ddp if param in layouts], optimizer.replicas)
    _broadcast_(without_ddp, group)
    _ignore(module, low_rank)
    optimizer.replicas = {**optimizer.replicas, **{param: (group,) for param in without_ddp}}
    replication = _Replication(names, group, check_every)
    optimizer.register_step_post_hook(replication.compare_weights)
    optimizer.register_state_dict_pre_hook(replication.average_error_buffers)


def _refuse_arguments(module: nn.Module, optimizer: Any, check_every: int | None) -> None:
    refuse_other_optimizers(optimizer, caller="compress_gradients")
    if any(isinstance(inner, nn.parallel.DistributedDataParallel) for inner in module.modules()):
        raise TypeError(
            "compress_gradients needs a module before DistributedDataParallel wraps it, since DDP asks only once what "
            "to leave alone: call compress_gradients(ddp.module, optimizer), then wrap ddp.module again"
        )
    is_int = isinstance(check_every, int) and not isinstance(check_every, bool)
    if check_every is not None and not (is_int and check_every >= 1):
        raise ValueError(f"check_every must be an int >= 1, or None, got {check_every!r}")


def _group_of(names: Mapping[Tensor, str], group: dist.ProcessGroup | None) -> dist.ProcessGroup:
    """The group to average over; refused where an engine averages, or shards, over some of its ranks already."""
    sharded = [param for param in names if is_sharded(param)]
    if group is None and sharded:
        raise ValueError(
            f"{names[sharded[0]]} is sharded: pass compress_gradients the group of ranks that hold the same shard, as "
            'group=mesh["replicate"].get_group()'
        )
    group = group or dist.group.WORLD
    if group is None:
        raise ValueError("compress_gradients needs a process group: call torch.distributed.init_process_group first")
    ranks = set(dist.get_process_group_ranks(group))
    for param in sharded:
        mesh = param.device_mesh
        for axis, placement in enumerate(param.placements):
            if len(ranks.intersection(dist.get_process_group_ranks(mesh.get_group(axis)))) > 1:
                raise NotImplementedError(
                    f"{names[param]} has the placement {placement} on a mesh axis with several ranks of the group, "
                    f"{sorted(ranks)}, so that they hold other shards or the engine averages their gradients: call "
                    'fully_shard(module, mesh=mesh["shard"]), and pass group=mesh["replicate"].get_group()'
                )
    return group


def _refuse_params(reduced: Collection[Tensor], replicas: Collection[Tensor]) -> None:
    num_compressed = sum(param in replicas for param in reduced)
    if not reduced or num_compressed:
        raise ValueError(
            f"the optimizer would reduce {len(reduced)} parameters of the module, and {num_compressed} of them are "
            "compressed already: call compress_gradients once for a module, with the optimizer that projects some of "
            "its parameters"
        )


def refuse_forgotten(param: Tensor, replicas: Mapping[Tensor, tuple[dist.ProcessGroup, ...]], *, name: str) -> None:
    """Refuse a shard that other ranks have copies of, and whose gradient nobody averages over them.

    Args:
        param: any parameter of an optimizer.
        replicas: of that optimizer.
        name: of the parameter.

    Raises:
        RuntimeError: the parameter came after `compress_gradients`, which sharded parameters need to be averaged.
    """
    if not is_sharded(param) or param in replicas:
        return
    ranks = {dist.get_rank()}.union(*map(dist.get_process_group_ranks, mesh_groups(param)))
    for group in {group for one, groups in replicas.items() if is_sharded(one) for group in groups}:
        copies = dist.get_process_group_ranks(group)
        if len(ranks.intersection(copies)) < len(copies):
            raise RuntimeError(
                f"{name} is sharded over ranks {sorted(ranks)}, and nobody averages its gradient over the replicas on "
                f"ranks {copies}: once the optimizer has it, call compress_gradients for its module with that group"
            )


def _broadcast_(tensors: Iterable[Tensor], group: dist.ProcessGroup) -> None:
    source = dist.get_global_rank(group, 0)
    for tensor in tensors:
        block = block_of(tensor.detach())
        sent = block.contiguous()
        dist.broadcast(sent, source, group)
        block.copy_(sent)


def _ignore(module: nn.Module, low_rank: Collection[Tensor]) -> None:
    """Put parameters on DDP's list, by each of their names; DDP begins those of the module itself with a dot, too."""
    ignored = set(getattr(module, "_ddp_params_and_buffers_to_ignore", ()))
    for name, param in module.named_parameters(remove_duplicate=False):
        if any(param is one for one in low_rank):
            ignored |= {name} if "." in name else {name, f".{name}"}
    nn.parallel.DistributedDataParallel._set_params_and_buffers_to_ignore_for_model(module, sorted(ignored))


@dataclass
class _Replication:
    """What the ranks of a group keep equal, as hooks of the optimizer: weights always, error buffers when saved."""

    names: Mapping[Tensor, str]
    group: dist.ProcessGroup
    check_every: int | None
    num_steps: int = 0

    @torch.no_grad()
    def average_error_buffers(self, optimizer: Optimizer) -> None:
        """E_k becomes the mean over all ranks, stored as E is, and so the same bits on each."""
        held = [(block_of(param), _blocks(optimizer.state.get(param, {}))) for param in self.names]
        held = [(param, state) for param, state in held if "error_buffer" in state]
        for wave in waves([param.numel() for param, _ in held], bound=MESSAGE_ENTRIES):
            together = [held[index] for index in wave]
            errors = [error_buffer.read(state, param.shape, math_dtype(param.dtype)) for param, state in together]
            average_(errors, self.group, what="average the error buffers for state_dict(), which every rank must call,")
            for (_, state), error in zip(together, errors, strict=True):
                error_buffer.write_(state, error)

    @torch.no_grad()
    def compare_weights(self, optimizer: Optimizer, *_: Any) -> None:
        """Refuse to go on, on every rank, with weights that are not the same bits on all of them."""
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            return
        # Nothing has moved yet where torch.distributed.checkpoint asks for state, nor at the start of a warm-up.
        if not self.num_steps and not any(float(group["lr"]) for group in optimizer.param_groups):
            return
        self.num_steps += 1
        every = self.check_every or (DEBUG_CHECK_EVERY if _is_debugging() else None)
        if self.num_steps > 1 and (every is None or self.num_steps % every):
            return
        different = [name for name, differs in zip(self.names.values(), self._differences(), strict=True) if differs]
        if different:
            raise RuntimeError(
                f"the weights of {different[0]}, and of {len(different) - 1} other parameters, differ between ranks "
                f"{dist.get_process_group_ranks(self.group)} after step {self.num_steps} of this process; "
                "compress_gradients expects the same bits on all. Wrap the module in DistributedDataParallel after "
                "compress_gradients, clip with ldadam.distributed.clip_grad_norm_ instead of torch's, change weights "
                "on all ranks or on none, and start again from the last checkpoint"
            )

    def _differences(self) -> list[bool]:
        """For each parameter, whether its bits differ between ranks, by an exact sum of them."""
        params = list(self.names)
        sums = torch.stack([_sum_of_bits(block_of(param)) for param in params])
        largest = torch.cat([sums, -sums])
        all_reduce_(largest, self.group, op=dist.ReduceOp.MAX, what="compare weights")
        differs = (largest[: len(params)] != -largest[len(params) :]).to(torch.int32)
        for group in dict.fromkeys(group for param in params for group in mesh_groups(param)):
            all_reduce_(differs, group, op=dist.ReduceOp.MAX, what="compare weights")
        return [bool(one) for one in differs.tolist()]


def _blocks(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: block_of(value) for key, value in state.items()}


def _is_debugging() -> bool:
    level = dist.get_debug_level()  # pyright: ignore[reportPrivateImportUsage]
    return level != dist.DebugLevel.OFF  # pyright: ignore[reportPrivateImportUsage]


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def _sum_of_bits(tensor: Tensor) -> Tensor:
    """The sum of all entries, read as integers: exact, so that its order has no effect."""
    return tensor.detach().view(_INTEGERS[tensor.element_size()]).sum(dtype=torch.int64)


def average_gradients_(params: Iterable[Tensor], replicas: Mapping[Tensor, tuple[dist.ProcessGroup, ...]]) -> None:
    """The gradients of parameters, in place, become their mean over the ranks whose gradients differ."""
    grads: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = {}
    for param in params:
        if param.grad is not None and param in replicas:
            grads.setdefault(replicas[param], []).append(block_of(param.grad))
    for groups, same in grads.items():
        for group in groups:
            average_(same, group, what="average the gradients of dense parameters")


def average_(tensors: Sequence[Tensor], group: dist.ProcessGroup, *, what: str) -> None:
    """Tensors, in place, become their mean over the ranks of a group; as few messages as their bound allows."""
    for together in _messages(tensors):
        flat = torch.cat([tensor.reshape(-1) for tensor in together])
        for message in flat.split(MESSAGE_ENTRIES):
            all_reduce_(message, group, op=dist.ReduceOp.SUM, what=what)
        flat.div_(dist.get_world_size(group))
        for tensor, mean in zip(together, flat.split([tensor.numel() for tensor in together]), strict=True):
            tensor.copy_(mean.view(tensor.shape))


def _messages(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype and device, as many as fit in a message; a larger one alone."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for same in kinds.values():
        for wave in waves([tensor.numel() for tensor in same], bound=MESSAGE_ENTRIES):
            yield [same[index] for index in wave]

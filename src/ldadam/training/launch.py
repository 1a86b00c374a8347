"""What torchrun says in the environment, and whether it fits the settings. Nothing here imports torch."""

from __future__ import annotations

import os
from dataclasses import dataclass

from ldadam.training.config import PretrainConfig
from ldadam.training.errors import UsageError


@dataclass(frozen=True)
class Launch:
    """The place of this process among those that torchrun started; one alone without torchrun."""

    by_torchrun: bool = False
    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def find_launch() -> Launch:
    """The launch of this process."""
    if "LOCAL_WORLD_SIZE" not in os.environ:
        return Launch(world_size=int(os.environ.get("WORLD_SIZE", "1")))
    rank, world_size, local_rank, local_world_size = (
        int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    )
    return Launch(True, rank, world_size, local_rank, local_world_size)


def is_first_process() -> bool:
    """Whether this process speaks for all."""
    return os.environ.get("RANK", "0") == "0"


def program() -> str:
    """How to start the command once more with as many processes."""
    local_world_size = os.environ.get("LOCAL_WORLD_SIZE")
    return f"torchrun --nproc-per-node {local_world_size} -m ldadam" if local_world_size else "ldadam"


def check_layout(config: PretrainConfig, launch: Launch) -> None:
    """Refuse a layout that does not fit the processes, or settings that do not fit the layout.

    Raises:
        UsageError: with what to choose instead.
    """
    _check_processes(config, launch)
    if config.parallel == "none":
        return
    assert config.batch_size
    if config.batch_size % launch.world_size:
        raise UsageError(
            f"batch_size counts the sequences of all processes, and {config.batch_size} cannot be shared evenly by "
            f"{launch.world_size}: choose a multiple of {launch.world_size}"
        )
    if config.step_in_backward and config.parallel == "ddp":
        raise UsageError(
            "step_in_backward moves a weight before ddp has averaged its gradient: use --parallel compressed, fsdp or "
            "hsdp, or leave it out"
        )
    if config.parallel == "compressed" and config.optimizer != "ldadamw":
        raise UsageError(f"parallel compressed works by LDAdamW's projections; with {config.optimizer} use ddp")
    _check_shard_size(config, launch)


def _check_processes(config: PretrainConfig, launch: Launch) -> None:
    if config.parallel == "none" and launch.world_size > 1:
        raise UsageError(
            f"there are {launch.world_size} processes and parallel is none: choose --parallel ddp (a whole model on "
            "each), compressed (the same with low-rank traffic), fsdp (the model sharded over all) or hsdp (sharded "
            "in groups), or start one process without torchrun"
        )
    if config.parallel != "none" and not launch.by_torchrun:
        raise UsageError(
            f"parallel {config.parallel} needs several processes: start them with `torchrun --nproc-per-node N -m "
            "ldadam pretrain ...`, N being the number of devices, or choose --parallel none"
        )


def _check_shard_size(config: PretrainConfig, launch: Launch) -> None:
    if config.parallel != "hsdp":
        if config.shard_size is not None:
            raise UsageError(f"shard_size has no effect with parallel {config.parallel}: leave it out, or choose hsdp")
        return
    size = shard_size(config, launch)
    if launch.world_size % size:
        raise UsageError(f"shard_size must divide the number of processes, {launch.world_size}; got {size}")
    if config.shard_size is None and size == launch.world_size > 1:
        raise UsageError(
            f"all {size} processes are on one host, which hsdp would make one shard group: say --shard-size, below "
            f"{size}, or use fsdp"
        )


def shard_size(config: PretrainConfig, launch: Launch) -> int:
    """How many ranks share one copy of the weights with hsdp: those of a host, unless told otherwise."""
    return config.shard_size or launch.local_world_size

"""The processes of a run: what they tell each other, and what they say when one of them is lost."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from ldadam.training.config import PretrainConfig
from ldadam.training.errors import CommandError, FailedTogether, RunError, UsageError
from ldadam.training.launch import Launch, check_layout, find_launch
from ldadam.training.run_folder import what_can_be_resumed

T = TypeVar("T")

# Accelerate would set up DDP of its own where it finds these.
_HIDDEN = ("LOCAL_RANK", "WORLD_SIZE")


class Ranks:
    """This process among all of a run. With one process every method is the identity.

    Attributes:
        waiting_for: what ranks do together next, for the message of those that wait in vain.
    """

    def __init__(self, launch: Launch, *, grouped: bool = False) -> None:
        self.launch = launch
        self.rank = launch.rank
        self.size = launch.world_size
        self.grouped = grouped
        self.waiting_for = "the start of the run"

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def mean(self, value: float) -> float:
        """The mean of a number of each rank."""
        return self.sum(value) / self.size

    def sum(self, value: float) -> float:
        """The sum of a number of each rank."""
        return self._reduce(value, dist.ReduceOp.SUM) if self.grouped else value

    def max(self, value: float) -> float:
        """The largest number of any rank."""
        return self._reduce(value, dist.ReduceOp.MAX) if self.grouped else value

    def _reduce(self, value: float, op: Any) -> float:
        reduced = torch.tensor(value, dtype=torch.float64)
        dist.all_reduce(reduced, op=op)
        return reduced.item()

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        if not self.grouped:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails inside on one rank fails on all of them, which have all finished when it ends."""
        own: Exception | None = None
        try:
            yield
        except Exception as error:
            own = error
        failures = self.gather(None if own is None else _sentence(own))
        if own is not None:
            raise own
        for rank, failure in enumerate(failures):
            if failure is not None:
                raise FailedTogether(f"rank {rank} failed: {failure[1]}", exit_code=failure[0])

    def on_first(self, function: Callable[[], T]) -> T:
        """What `function()` returns on rank 0, on every rank."""
        values: list[Any] = []
        with self.together():
            if self.is_first:
                values.append(function())
        return self.gather(values)[0][0]

    @contextlib.contextmanager
    def explain_loss_of_rank(self, run: Path) -> Iterator[None]:
        """Inside, a rank that waits for another in vain says for what, and how to go on."""
        try:
            yield
        except Exception as error:
            if not self.grouped or not _is_lost_connection(error):
                raise
            raise RunError(
                f"rank {self.rank} waited for {self.waiting_for}, and another rank has stopped or hangs: "
                f"{what_can_be_resumed(run)}"
            ) from error


def _sentence(error: Exception) -> tuple[int, str]:
    """Exit code and message of an error, which itself may not travel."""
    if isinstance(error, CommandError):
        return error.exit_code, str(error)
    return 1, f"{type(error).__name__}: {error}"


def _is_lost_connection(error: BaseException) -> bool:
    """Whether the process group has failed; gloo's errors have no type of their own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, dist.DistError) or (isinstance(seen, RuntimeError) and "gloo" in str(seen)):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


@contextlib.contextmanager
def joined(config: PretrainConfig) -> Iterator[Ranks]:
    """The ranks of a run, joined in a process group where there are several.

    Raises:
        UsageError: the layout does not fit the processes that there are.
    """
    launch = find_launch()
    check_layout(config, launch)
    if config.parallel == "none":
        yield Ranks(launch)
        return
    timeout = timedelta(seconds=config.parallel_timeout)
    try:
        dist.init_process_group(_backend(config, launch), timeout=timeout)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the {launch.world_size} processes did not find each other: {error}") from error
    hidden = {name: os.environ.pop(name) for name in _HIDDEN}
    try:
        yield Ranks(launch, grouped=True)
    finally:
        os.environ.update(hidden)
        # A thread of gloo that drops the tensors of the last message needs Python's lock, which the group's destructor
        # holds while it waits for that thread (torch 2.13). Asleep, this thread lends it the lock before.
        time.sleep(0.1)
        dist.destroy_process_group()


def _backend(config: PretrainConfig, launch: Launch) -> str:
    """Gloo for numbers, objects and tensors on the CPU; NCCL for tensors on CUDA, where each rank takes a device."""
    if config.device == "cpu" or not torch.cuda.is_available():
        return "gloo"
    if launch.local_world_size > torch.cuda.device_count():
        raise UsageError(
            f"{launch.local_world_size} processes on this host share {torch.cuda.device_count()} CUDA devices: start "
            "one process per device, or use --device cpu"
        )
    torch.cuda.set_device(launch.local_rank)
    return "cpu:gloo,cuda:nccl"

"""Real processes on gloo: a function run in each of them, and what each returns."""

import io
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing.connection import Connection
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

# Imported once, by the process that all others are forked from.
PRELOADED = [
    "torch.distributed.checkpoint.state_dict",
    "torch.distributed.fsdp",
    "torch.distributed.tensor.parallel",
    "transformers.models.llama.modeling_llama",
]


def in_processes(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """What `function(*args)` returns in each of `world_size` processes of one group; importable functions only.

    The processes stay for the next call, since starting them takes longer than most tests; one that fails ends all.
    """
    if world_size not in _GROUPS:
        _GROUPS[world_size] = ProcessGroup(world_size)
    try:
        return _GROUPS[world_size].call(function, args)
    except BaseException:
        _GROUPS.pop(world_size).close()
        raise


class ProcessGroup:
    """Processes that run what they are sent, until they are closed or this process ends."""

    def __init__(self, world_size: int):
        context = mp.get_context("forkserver")
        context.set_forkserver_preload(PRELOADED)
        pipes = [context.Pipe() for _ in range(world_size)]
        self.connections = [ours for ours, _ in pipes]
        with tempfile.NamedTemporaryFile(suffix=".rendezvous", delete=False) as file:
            place = (f"file://{file.name}", world_size)
        self.processes = [
            context.Process(target=_serve, args=(theirs, *place, rank), daemon=True)
            for rank, (_, theirs) in enumerate(pipes)
        ]
        for process, (_, theirs) in zip(self.processes, pipes, strict=True):
            process.start()
            theirs.close()

    def call(self, function: Callable[..., Any], args: tuple[Any, ...]) -> list[Any]:
        """What `function(*args)` returns in each process."""
        for connection in self.connections:
            _send(connection, (function, args))
        replies = [self._reply(rank) for rank in range(len(self.processes))]
        failed = [f"rank {rank}:\n{reply}" for rank, (is_error, reply) in enumerate(replies) if is_error]
        assert not failed, "\n".join(failed)
        return [reply for _, reply in replies]

    def _reply(self, rank: int) -> tuple[bool, Any]:
        try:
            return _receive(self.connections[rank])
        except EOFError:
            return True, "the process has ended"

    def close(self) -> None:
        for process in self.processes:
            process.kill()


_GROUPS: dict[int, ProcessGroup] = {}


def _serve(connection: Connection, rendezvous: str, world_size: int, rank: int) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rendezvous, timedelta(seconds=60), world_size, rank)
    while True:
        function, args = _receive(connection)
        try:
            reply = False, function(*args)
        except BaseException:
            reply = True, traceback.format_exc()
        _send(connection, reply)


def _send(connection: Connection, message: Any) -> None:
    """Through torch.save, which needs no shared memory for tensors."""
    buffer = io.BytesIO()
    torch.save(message, buffer)
    connection.send_bytes(buffer.getvalue())


def _receive(connection: Connection) -> Any:
    return torch.load(io.BytesIO(connection.recv_bytes()), weights_only=False)

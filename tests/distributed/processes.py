"""Real processes on gloo: a function run in each of them, and what each returns."""

import tempfile
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def in_processes(function: Callable[..., Any], world_size: int, *args: Any) -> list[Any]:
    """What `function(*args)` returns in each of `world_size` processes of one group; importable functions only."""
    with tempfile.TemporaryDirectory() as folder:
        context = mp.get_context("spawn")
        processes = [
            context.Process(target=_run, args=(function, rank, world_size, folder, args)) for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        failed = [path.read_text() for path in sorted(Path(folder).glob("error.*"))]
        assert not failed, "\n".join(failed)
        return [torch.load(f"{folder}/result.{rank}", weights_only=False) for rank in range(world_size)]


def _run(function: Callable[..., Any], rank: int, world_size: int, folder: str, args: tuple[Any, ...]) -> None:
    import traceback

    torch.set_num_threads(1)
    timeout = timedelta(seconds=60)
    dist.init_process_group("gloo", f"file://{folder}/rendezvous", timeout, world_size, rank)
    try:
        torch.save(function(*args), f"{folder}/result.{rank}")
    except BaseException:
        Path(f"{folder}/error.{rank}").write_text(f"rank {rank}:\n{traceback.format_exc()}")
    finally:
        dist.destroy_process_group()

"""Work in a process of its own: what it leaves behind, or dies of, is gone with it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import torch

Outcome = dict[str, Any]


def in_own_process(work: Callable[..., Outcome], *arguments: Any) -> Outcome:
    """What `work` returns, with "status" "ok"; else a status that says why there is nothing.

    Args:
        work: a function of a module, as the new process imports it.
        arguments: that can be pickled.
    """
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_outcome, work, arguments).result()
        except BrokenProcessPool:
            return {"status": "killed: the host's memory was full, most likely"}
        except KeyboardInterrupt:
            for child in multiprocessing.active_children():
                child.kill()  # or the pool waits until its work is done
            raise


def _outcome(work: Callable[..., Outcome], arguments: tuple[Any, ...]) -> Outcome:
    """Exceptions stay here, since not each of them can be pickled."""
    try:
        return {"status": "ok", **work(*arguments)}
    except ImportError as error:
        return {"status": f"not installed: {_first_line(error)}"}
    except torch.cuda.OutOfMemoryError as error:
        return {"status": f"out of memory: {_first_line(error)}"}
    except Exception as error:
        return {"status": f"failed: {type(error).__name__}: {_first_line(error)}"}


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or ["no message"])[0]

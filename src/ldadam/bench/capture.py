"""A step as a CUDA graph: recorded once, then replayed without Python."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

# Before the recording: a first step makes state, a second one loads the kernels of ordinary steps.
PLAIN_STEPS = 2


class CapturedStep:
    """An optimizer whose steps, from the third on, replay a CUDA graph; gradients must stay in place."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self._graph: torch.cuda.CUDAGraph | None = None
        self._num_plain = 0

    @property
    def state(self) -> Mapping[Any, Any]:
        """The optimizer's."""
        return self.optimizer.state

    def step(self) -> None:
        """A step, recorded first if it is the third."""
        if self._num_plain < PLAIN_STEPS:
            self._num_plain += 1
            self._plain_step()
            return
        if self._graph is None:
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                self.optimizer.step()
        self._graph.replay()

    def _plain_step(self) -> None:
        """A step on a stream of its own, as recording asks for."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.optimizer.step()
        torch.cuda.current_stream().wait_stream(stream)

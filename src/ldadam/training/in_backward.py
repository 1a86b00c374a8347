"""`--step-in-backward`: parameters are moved where no callback of the trainer sees it, so hooks tell the recorder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ldadam import LDAdamW, step_in_backward
from ldadam.training.recorder import Recorder


@contextmanager
def stepping_in_backward(optimizer: LDAdamW, recorder: Recorder, *, accumulation_steps: int) -> Iterator[None]:
    """Step in backward inside; hooks of a parameter run in the order in which they were registered."""
    places = [(index, param) for index, group in enumerate(optimizer.param_groups) for param in group["params"]]
    before = [
        param.register_post_accumulate_grad_hook(partial(recorder.before_step_in_backward, index))
        for index, param in places
    ]
    with step_in_backward(optimizer, accumulation_steps=accumulation_steps):
        after = [param.register_post_accumulate_grad_hook(recorder.after_step_in_backward) for _, param in places]
        try:
            yield
        finally:
            for handle in (*before, *after):
                handle.remove()

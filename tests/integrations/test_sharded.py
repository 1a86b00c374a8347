"""LDAdamW where a trainer shards the model with FSDP2 over two processes."""

import pytest
import torch
from by_hand import largest_distance, train_by_hand
from sharded_runs import BUILDERS, train_sharded
from tiny_llama import model as tiny_model
from trainers import train_by_hand_with

from distributed.processes import in_processes
from tolerances import TOLERANCES

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("Lightning", "Trainer", "PEFT", "SFT", "DPO")]
# DPO's chosen and rejected answers share their prompts, of which gradients cancel: rounding is left, in another order.
OPTIONS = {"DPO": {"eps": 1e-4}}


def by_hand(name: str, folder, **options) -> torch.nn.Module:
    """The same training in one process."""
    return train_by_hand_with(BUILDERS[name](folder), **options) if name in BUILDERS else train_by_hand(4, **options)


@pytest.mark.parametrize("name", ["Accelerate", *SLOW])
def test_a_sharded_training_is_the_loop_by_hand_with_error_feedback_on_and_resumes_bit_by_bit(tmp_path, name):
    options = OPTIONS.get(name, {})
    expected, without = (by_hand(name, tmp_path, error_feedback=each, **options) for each in (True, False))
    start, model = (BUILDERS[name](tmp_path).model if name in BUILDERS else tiny_model() for _ in range(2))
    near = TOLERANCES["backend, float32, many steps"]
    for at_once, resumed in in_processes(train_sharded, 2, name, tmp_path, options):
        model.load_state_dict(at_once)
        assert largest_distance(model, expected, start) < near
        assert largest_distance(model, without, start) > 100 * near
        torch.testing.assert_close(resumed, at_once, rtol=0, atol=0)

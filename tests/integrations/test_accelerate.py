"""LDAdamW in a loop with Hugging Face Accelerate, on one process; test_sharded.py has two."""

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from by_hand import LR, are_equal, batches, scale_on_cpu, train_by_hand, warmup
from tiny_llama import model as tiny_model

from builders import assert_same_state, grads_of, mixed_params, quiet, run
from ldadam import LDAdamW, lowrank_param_groups


@pytest.fixture(autouse=True)
def fresh_state():
    """Accelerate keeps one state for a process, which a Trainer in a test before may have set."""
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train_with_accelerate(
    *, accumulation: int = 1, clip: float | None = None, autocast: torch.dtype | None = None
) -> torch.nn.Module:
    precision = {None: "no", torch.bfloat16: "bf16", torch.float16: "fp16"}[autocast]
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulation, mixed_precision=precision)
    if autocast == torch.float16:
        scale_on_cpu(accelerator)
    model = tiny_model()
    optimizer = LDAdamW(lowrank_param_groups(model, rank=8), lr=LR)
    model, optimizer, scheduler = accelerator.prepare(model, optimizer, warmup(optimizer))
    skipped = []
    for _, batch in zip(range(4 * accumulation), batches(), strict=False):
        with accelerator.accumulate(model):
            accelerator.backward(model(**batch).loss)
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
        skipped.append(optimizer.step_was_skipped)
    assert any(skipped) == (autocast == torch.float16) and not skipped[-1]
    return accelerator.unwrap_model(model)


SETTINGS = {
    "plain": {},
    "accumulation and clipping": {"accumulation": 2, "clip": 0.5},
    "bfloat16 autocast": {"autocast": torch.bfloat16},
    "float16 with a GradScaler": {"autocast": torch.float16, "clip": 0.5},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_accelerate_is_the_loop_by_hand_with_error_feedback_on(settings):
    model = train_with_accelerate(**settings)
    assert are_equal([model, train_by_hand(4, schedule=warmup, **settings)])
    assert not are_equal([model, train_by_hand(4, schedule=warmup, error_feedback=False, **settings)])


@pytest.mark.parametrize("error_dtype", [None, "int8"])
def test_wrapping_hands_the_state_through_unchanged(error_dtype):
    """Accelerate loads an optimizer's own state dict into it."""
    optimizers = []
    for _ in range(2):
        params = mixed_params(torch.bfloat16)
        optimizers.append(quiet(params, rank=4, error_dtype=error_dtype))
        run(optimizers[-1], params, grads_of(params, 3))
    wrapped = Accelerator(cpu=True).prepare(optimizers[0])
    assert_same_state(wrapped.optimizer, optimizers[1])

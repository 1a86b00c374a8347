"""What stepping in backward cannot do is refused, with the reason."""

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from builders import normal, parameter
from in_backward_runs import backward, build, train
from ldadam import LDAdamW, step_in_backward


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"accumulation_steps": 0}, "accumulation_steps must be an int >= 1, got 0"),
        ({"accumulation_steps": 2.0}, "accumulation_steps must be an int >= 1, got 2.0"),
        ({"accumulation_steps": True}, "accumulation_steps must be an int >= 1, got True"),
        ({"clip_norm": 0.0}, "clip_norm must be a finite number > 0, or None for no clipping, got 0.0"),
        ({"clip_norm": float("inf")}, "got inf"),
        ({"clip_norm": 1.0, "accumulation_steps": 2}, "needs the whole gradient of a step"),
    ],
    ids=str,
)
def test_an_argument_out_of_range(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        step_in_backward(build()[1], **arguments)


def test_another_optimizer():
    with pytest.raises(TypeError, match="needs an LDAdamW, got AdamW"):
        step_in_backward(torch.optim.AdamW([parameter(12, 20)]))


def test_a_second_handle_but_not_one_after_remove():
    _, optimizer = build()
    handle = step_in_backward(optimizer)
    with pytest.raises(ValueError, match="already steps in backward"):
        step_in_backward(optimizer)
    handle.remove()
    step_in_backward(optimizer)


@pytest.mark.parametrize("unscales", [False, True], ids=["step", "unscale_ and step"])
def test_a_grad_scaler(unscales):
    model, optimizer = build()
    scaler = torch.amp.GradScaler("cpu")
    step_in_backward(optimizer)
    scaler.scale(model(normal(6, 20))).backward()
    if unscales:
        scaler.unscale_(optimizer)
    with pytest.raises(RuntimeError, match="a GradScaler cannot work with step_in_backward"):
        scaler.step(optimizer)


def test_a_grad_scaler_that_is_disabled_or_comes_after_remove_is_fine():
    model, optimizer = build()
    with step_in_backward(optimizer):
        disabled = torch.amp.GradScaler("cpu", enabled=False)
        disabled.scale(model(normal(6, 20))).backward()
        disabled.step(optimizer)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(normal(6, 20))).backward()
    scaler.step(optimizer)
    assert optimizer.state[model.experts]["step"] == 2


def test_more_backward_passes_than_were_promised():
    """A trainer that accumulates, and a handle that was not told."""
    model, optimizer = build()
    step_in_backward(optimizer)
    sentence = r"parameter 0 of param group 0 was to move more than once before step\(\): backward ran more often"
    with pytest.raises(RuntimeError, match=sentence):
        train(model, optimizer, [0], num_micro=2)


def test_more_micro_batches_than_were_promised():
    model, optimizer = build()
    step_in_backward(optimizer, accumulation_steps=2)
    with pytest.raises(RuntimeError, match="more often than accumulation_steps=2 times"):
        train(model, optimizer, [0], num_micro=3)


def test_a_gradient_that_is_written_after_backward():
    model, optimizer = build()
    step_in_backward(optimizer)
    backward(model, 0)
    model.experts.grad = torch.zeros_like(model.experts)
    with pytest.raises(RuntimeError, match="its gradient was set after backward"):
        optimizer.step()


def test_a_checkpoint_between_micro_batches():
    model, optimizer = build()
    step_in_backward(optimizer, accumulation_steps=3)
    backward(model, 0)
    with pytest.raises(RuntimeError, match=r"param group 0 has seen 1 of 3, .* save after optimizer.step\(\)"):
        optimizer.state_dict()
    optimizer.step()
    assert len(optimizer.state_dict()["state"]) == len(list(model.parameters()))


def test_a_sparse_gradient():
    embedding = torch.nn.Embedding(50, 16, sparse=True)
    step_in_backward(LDAdamW([("tokens", embedding.weight)], rank=4))
    with pytest.raises(RuntimeError, match=r"that of tokens, .* is sparse"):
        embedding(torch.tensor([1, 2])).sum().backward()


def train_ddp(rank: int, world_size: int, rendezvous: str, result: str) -> None:
    """Some steps under DDP: the error, and whether a weight had moved by then."""
    dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=world_size)
    model, optimizer = build()
    before = model.experts.detach().clone()
    step_in_backward(optimizer)
    error = ""
    try:
        train(DistributedDataParallel(model), optimizer, range(3))
    except Exception as raised:
        error = f"{type(raised).__name__}: {raised}"
    moved = not torch.equal(before, model.experts)
    torch.save({"error": error, "moved": moved}, f"{result}.{rank}")
    dist.destroy_process_group()


@pytest.mark.parametrize(
    ("world_size", "sentence", "moved"),
    [
        (1, "was set after backward had moved it, by hand or by DistributedDataParallel", True),
        (2, "NotImplementedError: stepping in backward sees a gradient that 1 of 2 processes share", False),
    ],
)
def test_distributed_data_parallel(tmp_path, world_size, sentence, moved):
    """One process has the averaged gradient, but frees it too early; with two, nothing may move."""
    rendezvous, result = str(tmp_path / "rendezvous"), str(tmp_path / "result")
    mp.spawn(train_ddp, args=(world_size, rendezvous, result), nprocs=world_size)
    for rank in range(world_size):
        found = torch.load(f"{result}.{rank}")
        assert sentence in found["error"]
        assert found["moved"] == moved

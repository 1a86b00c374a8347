"""What happens to the state of sharded parameters between steps: creation, and loading what was sharded otherwise."""

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict
from torch.distributed.tensor import DTensor, distribute_tensor

from distributed.engines import assemble, state_of, train, weights_of
from ldadam import LDAdamW


def fresh(engine: str | None, **options) -> tuple[nn.Module, LDAdamW, slice]:
    return assemble(engine, "net", torch.float64, **options)


def primed(engine: str) -> tuple[dict[str, Tensor], dict[str, dict[str, Tensor]], list[str]]:
    """Weights and state after torch has asked a fresh optimizer for its state, and parameters without DTensor state."""
    model, optimizer, _ = fresh(engine)
    get_optimizer_state_dict(model, optimizer)
    plain = [
        name
        for name, param in model.named_parameters()
        for key, value in optimizer.state[param].items()
        if isinstance(param, DTensor) and value.dim() and not isinstance(value, DTensor)
    ]
    return weights_of(model), state_of(model, optimizer), plain


def warm_up(engine: str | None, *, is_primed: bool, num_steps: int = 3) -> list[dict[str, Tensor]]:
    """Weights after steps of which the first is at a learning rate of zero, with no gradient in half of the rows."""
    model, optimizer, _ = fresh(engine)
    if is_primed:
        get_optimizer_state_dict(model, optimizer)
    weights = []
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = 0.01 * step
        for number, param in enumerate(model.parameters()):
            generator = torch.Generator().manual_seed(100 * step + number)
            grad = torch.randn(param.shape, generator=generator, dtype=torch.float64)
            if step == 0:
                grad[len(grad) // 2 :] = 0
            param.grad = _sharded_as(param, grad)
        optimizer.step()
        weights.append(weights_of(model))
    return weights


def _sharded_as(param: Tensor, whole: Tensor) -> Tensor:
    if not isinstance(param, DTensor):
        return whole
    return distribute_tensor(whole, param.device_mesh, param.placements)


def handed_over(source: str, target: str | None, options: dict) -> tuple[dict, dict]:
    """The state of a run of one engine, and that of another engine's optimizer which has loaded its state dict."""
    model, optimizer, samples = fresh(source, **options)
    train(model, optimizer, range(2), samples=samples)
    other, loaded, _ = fresh(target, **options)
    loaded.load_state_dict(optimizer.state_dict())
    for param in other.parameters():
        for key, value in loaded.state[param].items():
            assert isinstance(value, DTensor) == (isinstance(param, DTensor) and value.dim() > 0), key
            if isinstance(param, DTensor) and key.startswith("error"):
                assert value.placements == param.placements
    return state_of(model, optimizer), state_of(other, loaded)


def refusals() -> dict[str, str]:
    """What is said when a sharded parameter is given what it has no exact step for."""
    messages = {}
    model, optimizer, _ = fresh("tp, 2", error_dtype="int8")
    whole, quantised, _ = fresh(None, error_dtype="int8")
    train(whole, quantised, range(1))
    for name, call in {
        "step": lambda: train(model, optimizer, range(1)),
        "load": lambda: optimizer.load_state_dict(quantised.state_dict()),
    }.items():
        try:
            call()
        except NotImplementedError as error:
            messages[name] = str(error)
    return messages

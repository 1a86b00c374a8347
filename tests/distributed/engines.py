"""Small models, PyTorch's engines around them, and the loop that trains them; alone too, for comparison."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, SequenceParallel, parallelize_module
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from builders import quiet
from ldadam import LDAdamW, lowrank_param_groups, step_in_backward
from ldadam.distributed import compress_gradients

BATCH, LENGTH = 8, 6


class Net(nn.Module):
    """Sizes that divide unevenly by two and four, and a matrix of three rows, of which a fourth process has none."""

    vocabulary = 18
    parallel_plan = {  # noqa: RUF012
        "embedding": RowwiseParallel(input_layouts=Replicate(), output_layouts=Shard(1)),
        "norm": SequenceParallel(),
        "up": ColwiseParallel(input_layouts=Shard(1)),
        "down": RowwiseParallel(),
    }

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(self.vocabulary, 10)
        self.norm = nn.LayerNorm(10)
        self.up, self.down = nn.Linear(10, 26), nn.Linear(26, 9)
        self.narrow, self.head = nn.Linear(9, 3), nn.Linear(3, self.vocabulary)

    def forward(self, tokens: Tensor) -> Tensor:
        """Logits (batch, length, vocabulary)."""
        hidden = self.down(torch.tanh(self.up(self.norm(self.embedding(tokens)))))
        return self.head(torch.tanh(self.narrow(torch.tanh(hidden))))


def llama() -> nn.Module:
    """A Llama of transformers with two layers, grouped-query attention and odd sizes."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=51,
        hidden_size=32,
        intermediate_size=46,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        use_cache=False,
    )
    return LlamaForCausalLM(config)


def _llama_plan(model: nn.Module) -> dict[str, Any]:
    return {
        f"model.layers.*.{block}.{name}_proj": style()
        for style, names in (
            (ColwiseParallel, {"self_attn": "qkv", "mlp": ("gate", "up")}),
            (RowwiseParallel, {"self_attn": "o", "mlp": ("down",)}),
        )
        for block, parts in names.items()
        for name in parts
    }


@dataclass(frozen=True)
class Engine:
    """How a model is spread over processes: sizes of the mesh by name of its axes."""

    axes: dict[str, int]
    policy: MixedPrecisionPolicy | None = None

    @property
    def world_size(self) -> int:
        return int(torch.tensor(list(self.axes.values())).prod())


BF16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)

ENGINES = {
    "fsdp, 2": Engine({"shard": 2}),
    "fsdp, 4": Engine({"shard": 4}),
    "fsdp in bfloat16, 2": Engine({"shard": 2}, BF16),
    "hsdp, 2 x 2": Engine({"replicate": 2, "shard": 2}),
    "ddp, 2": Engine({"ddp": 2}),
    "compressed, 2": Engine({"compressed": 2}),
    "compressed, 4": Engine({"compressed": 4}),
    "compressed fsdp, 2 x 2": Engine({"compressed": 2, "shard": 2}),
    "replicated, 2": Engine({"replicate": 2, "shard": 1}),
    "tp, 2": Engine({"tensor": 2}),
    "fsdp and tp, 2 x 2": Engine({"shard": 2, "tensor": 2}),
}


def build(kind: str, dtype: torch.dtype) -> nn.Module:
    torch.manual_seed(0)
    return (Net() if kind == "net" else llama()).to(dtype)


def spread(model: nn.Module, engine: Engine) -> tuple[nn.Module, slice]:
    """The model on the mesh of an engine, in place, and which samples of a batch this process takes."""
    names, mesh = tuple(engine.axes), mesh_of(engine)
    if "tensor" in names:
        plan = Net.parallel_plan if isinstance(model, Net) else _llama_plan(model)
        parallelize_module(model, mesh["tensor"], plan)
    data = tuple(name for name in names if name != "tensor")
    if not data:
        return model, slice(None)
    if "ddp" in names:
        return DistributedDataParallel(model), _samples(mesh, data)
    blocks = model.children() if isinstance(model, Net) else model.model.layers
    options = {"mp_policy": engine.policy} if engine.policy else {}
    sharded = tuple(name for name in data if name != "compressed")
    for block in [*blocks, model] if sharded else []:
        fully_shard(block, mesh=mesh[sharded], **options)
    return model, _samples(mesh, data)


def mesh_of(engine: Engine) -> DeviceMesh:
    return init_device_mesh("cpu", tuple(engine.axes.values()), mesh_dim_names=tuple(engine.axes))


def assemble(name: str | None, kind: str, dtype: torch.dtype, **options: Any) -> tuple[nn.Module, LDAdamW, slice]:
    """The model of an engine, or alone, its optimizer, and which samples of a batch this process takes."""
    if name is None:
        model = build(kind, dtype)
        return model, optimizer_of(model, kind=kind, **options), slice(None)
    engine = ENGINES[name]
    model, samples = spread(build(kind, dtype), engine)
    optimizer = optimizer_of(model, kind=kind, **options)
    if "compressed" in engine.axes:
        compress_gradients(model, optimizer, group=mesh_of(engine)["compressed"].get_group())
        model = model if isinstance(model, FSDPModule) else DistributedDataParallel(model)
    return model, optimizer, samples


def _samples(mesh: DeviceMesh, data: tuple[str, ...]) -> slice:
    number, count = 0, 1
    for name in data:
        number, count = number * mesh[name].size() + mesh[name].get_local_rank(), count * mesh[name].size()
    return slice(number, None, count)


def optimizer_of(model: nn.Module, *, kind: str, **options: Any) -> LDAdamW:
    rank = 2 if kind == "net" else 8
    return quiet(lowrank_param_groups(model, rank=rank), **{"lr": 1e-2, "weight_decay": 0.1, **options})


def tokens_of(step: int, micro: int, vocabulary: int) -> Tensor:
    """A batch (BATCH, LENGTH + 1)."""
    generator = torch.Generator().manual_seed(100 * step + micro)
    return torch.randint(vocabulary, (BATCH, LENGTH + 1), generator=generator)


def loss_of(model: nn.Module, tokens: Tensor) -> Tensor:
    logits = model(tokens[:, :-1])
    logits = logits if isinstance(logits, Tensor) else logits.logits
    return functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    steps: Iterable[int],
    *,
    samples: slice = slice(None),
    num_micro: int = 1,
    sync_each: bool = False,
    clip: float | None = None,
    before_step: Callable[[], object] = lambda: None,
    after_step: Callable[[], object] = lambda: None,
) -> None:
    """The usual loop; engines reduce gradients of the last micro-batch alone, or, with `sync_each`, of each."""
    inner = bare(model)
    vocabulary = inner.vocabulary if isinstance(inner, Net) else inner.config.vocab_size
    for step in steps:
        for micro in range(num_micro):
            is_synced = sync_each or micro == num_micro - 1
            if isinstance(model, FSDPModule):
                model.set_requires_gradient_sync(is_synced)
            with nullcontext() if is_synced or not isinstance(model, DistributedDataParallel) else model.no_sync():
                (loss_of(model, tokens_of(step, micro, vocabulary)[samples]) / num_micro).backward()
        if clip is not None:
            nn.utils.clip_grad_norm_(model.parameters(), clip)
        before_step()
        optimizer.step()
        optimizer.zero_grad()
        after_step()


def bare(model: nn.Module) -> nn.Module:
    """The model without the wrapper of an engine."""
    return model.module if isinstance(model, DistributedDataParallel) else model


def full(tensor: Tensor) -> Tensor:
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: full(param) for name, param in bare(model).named_parameters()}


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, dict[str, Tensor]]:
    """The whole state of each parameter, by name, as it is saved."""
    optimizer.state_dict()
    return {
        name: {key: full(value) for key, value in optimizer.state[param].items()}
        for name, param in bare(model).named_parameters()
    }


def run(
    engine: str | None,
    kind: str,
    dtype: torch.dtype,
    num_steps: int,
    *,
    options: dict[str, Any] | None = None,
    **loop: Any,
) -> dict[str, Any]:
    """Weights and gradients of each step and the final state, of an engine in this process group, or alone."""
    model, optimizer, samples = assemble(engine, kind, dtype, **(options or {}))
    seen: dict[str, Any] = {"weights": [], "grads": []}
    train(
        model,
        optimizer,
        range(num_steps),
        samples=samples,
        before_step=lambda: seen["grads"].append({name: full(p.grad) for name, p in bare(model).named_parameters()}),
        after_step=lambda: seen["weights"].append(weights_of(model)),
        **loop,
    )
    placements = {str(getattr(param, "placements", None)) for param in model.parameters()}
    lengths = {len(param.to_local()) for param in model.parameters() if isinstance(param, DTensor)}
    return {**seen, "state": state_of(model, optimizer), "placements": placements, "lengths": lengths}


def run_in_backward(engine: str | None, num_steps: int, *, num_micro: int, sync_each: bool, **options: Any) -> list:
    """Weights after each step of a run that steps in backward; every gradient is gone when backward ends."""
    model, optimizer, samples = assemble(engine, "net", torch.float64, error_dtype=options.pop("error_dtype", None))
    weights: list[dict[str, Tensor]] = []
    params = list(model.parameters())

    def check_gradients() -> None:
        """Where DDP averages those of dense parameters, they wait for it."""
        stepped = [param for param in params if not optimizer.replicas or param in optimizer.replicas]
        assert stepped and all(param.grad is None for param in stepped)

    with step_in_backward(optimizer, **options):
        train(
            model,
            optimizer,
            range(num_steps),
            samples=samples,
            num_micro=num_micro,
            sync_each=sync_each,
            before_step=check_gradients,
            after_step=lambda: weights.append(weights_of(model)),
        )
    return weights

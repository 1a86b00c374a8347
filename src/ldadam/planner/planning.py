"""`plan`: a model and a setting in, bytes on each device and traffic of each step out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from ldadam.backends import explain
from ldadam.distributed.plan import SHARDINGS, Collective
from ldadam.optimizer import DEFAULTS, LDAdamW
from ldadam.planner.activations import activation_bytes
from ldadam.planner.footprint import Footprint, StateBytes, sort_state
from ldadam.planner.models import Model, PlannedModel, Source, find_source, model_of
from ldadam.planner.peers import PEERS
from ldadam.planner.shards import Shard, find_shards, local_part
from ldadam.planner.step_peak import is_elsewhere, single_step_peak, step_peak
from ldadam.planner.traffic import gathered_bytes, message_bytes, traffic_of_passes, traffic_of_step
from ldadam.state import planned_bytes

OPTIMIZERS = ("ldadamw", *PEERS)


@dataclass(frozen=True)
class Settings:
    """What a plan is for; `plan` says what each means."""

    options: Mapping[str, Any]
    optimizer: str = "ldadamw"
    batch: int | None = None
    seq: int | None = None
    step_in_backward: bool = False
    checkpointing: bool = False
    devices: int = 1
    sharding: str = "fsdp"
    device: str = "cuda"

    def __post_init__(self) -> None:
        """Refuse what cannot be.

        Raises:
            ValueError: a name is unknown, a number is too small, or two settings exclude each other.
        """
        known = {"optimizer": OPTIMIZERS, "sharding": SHARDINGS, "device": ("cuda", "cpu")}
        for name, choices in known.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}")
        for name in ("batch", "seq", "devices"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        if (self.batch is None) != (self.seq is None):
            raise ValueError("batch and seq are given together, or neither: activations follow from their product")
        if self.devices > 1 and self.sharding == "ddp" and self.step_in_backward:
            raise ValueError("step_in_backward would see local gradients under ddp: use compressed, or fsdp")
        if self.devices > 1 and self.sharding == "compressed" and self.optimizer != "ldadamw":
            raise ValueError(f"compressed reduces LDAdamW's factors; {self.optimizer} has none: use ddp or fsdp")

    @property
    def parts(self) -> int:
        """Into how many parts weights, gradients and state are divided."""
        return self.devices if self.sharding == "fsdp" else 1


@dataclass(frozen=True)
class Plan:
    """Bytes on each device with each optimizer, and what a step sends.

    Attributes:
        model: its name.
        num_weights: numbers in all weights, on all devices.
        dtype: of the weights.
        settings: what was asked for.
        backend: how LDAdamW's step is computed, and why.
        footprints: of all optimizers, the one that was asked for first, each with the same weights and activations.
        traffic: collectives of a step with the optimizer that was asked for.
    """

    model: str
    num_weights: int
    dtype: str
    settings: Settings
    backend: str
    footprints: tuple[Footprint, ...]
    traffic: tuple[Collective, ...]

    @property
    def footprint(self) -> Footprint:
        """With the optimizer that was asked for."""
        return self.footprints[0]

    @property
    def sent_bytes(self) -> int:
        """Bytes that each device sends in a step."""
        return sum(collective.sent_bytes(self.settings.devices) for collective in self.traffic)


def plan(
    model: Model,
    *,
    rank: int | float | None = DEFAULTS.rank,
    error_dtype: str | torch.dtype | None = DEFAULTS.error_dtype,
    error_feedback: bool = DEFAULTS.error_feedback,
    proj_type: str = DEFAULTS.proj_type,
    backend: str = DEFAULTS.backend,
    dtype: str | torch.dtype | None = None,
    optimizer: str = "ldadamw",
    batch: int | None = None,
    seq: int | None = None,
    step_in_backward: bool = False,
    checkpointing: bool = False,
    devices: int = 1,
    sharding: str = "fsdp",
    device: str = "cuda",
) -> Plan:
    """Bytes on each device, and traffic of each step, before anything is allocated.

    State follows from the shapes that `LDAdamW` itself uses, and the step's peak from its own step on meta tensors.
    Activations are an estimate, for Llama-like models only.

    Args:
        model: a module, on any device; the name of a Llama (60m, 130m, 350m, 1b, 7b, 8b, 13b, 70b, 405b); a list such
            as "512x512:32,1376x512:16"; a hub id or a folder with a config.json; or shapes by name.
        rank: as in `LDAdamW`, as are `error_dtype`, `error_feedback`, `proj_type` and `backend`.
        dtype: of weights and gradients; None means a module's own, else float32.
        optimizer: "ldadamw", "adamw", "adamw8bit", "adamw4bit", "galore" or "apollo"; the others are planned beside it.
        batch: sequences at a time on each device; None leaves activations out.
        seq: tokens of a sequence.
        step_in_backward: whether each parameter is stepped, and its gradient freed, inside of the backward pass.
        checkpointing: whether each layer keeps its input only, and is computed anew in the backward pass.
        devices: how many share the work.
        sharding: how: "fsdp" divides weights, gradients and state by rows; "ddp" repeats them; "compressed" repeats
            them, and reduces LDAdamW's small factors instead of gradients.
        device: "cuda" or "cpu", which need not exist here: where the step runs.

    Returns:
        A `Plan`; all its sizes are in bytes.

    Raises:
        ValueError: an option is out of range, or the model is unknown.

    Examples:
        >>> from ldadam import plan
        >>> planned = plan("7b", rank=256, error_dtype="bfloat16", dtype="bfloat16")
        >>> planned.footprint.state.error_buffer
        12952010752
        >>> planned.footprint.cards
        (80, 141)
    """
    options = {"rank": rank, "error_dtype": error_dtype, "error_feedback": error_feedback, "proj_type": proj_type}
    settings = Settings(
        {**options, "backend": backend},
        optimizer,
        batch,
        seq,
        step_in_backward,
        checkpointing,
        devices,
        sharding,
        device,
    )
    return plan_of(find_run(find_source(model), settings, dtype=dtype))


@dataclass(frozen=True)
class PlannedRun:
    """A model, the optimizer that would step it, and every weight as that optimizer sees it."""

    model: PlannedModel
    ours: LDAdamW
    shards: list[Shard]
    settings: Settings


def find_run(source: Source, settings: Settings, *, dtype: str | torch.dtype | None) -> PlannedRun:
    """What a run with these settings would train; arguments as in `plan`.

    Raises:
        ValueError: an option is out of range.
    """
    found = model_of(source, rank=settings.options["rank"], dtype=_as_dtype(dtype))
    ours = LDAdamW(found.groups, **settings.options)
    return PlannedRun(found, ours, find_shards(ours, parts=settings.parts), settings)


def plan_of(run: PlannedRun) -> Plan:
    """The plan of a run, with all optimizers beside the one that was asked for."""
    settings, device = run.settings, torch.device(run.settings.device)
    names = (settings.optimizer, *(name for name in OPTIMIZERS if name != settings.optimizer))
    return Plan(
        model=run.model.name,
        num_weights=sum(weight.numel() for weight in [*run.model.frozen, *(shard.param for shard in run.shards)]),
        dtype=str(run.shards[0].param.dtype).removeprefix("torch."),
        settings=settings,
        backend=explain(settings.options["backend"], device, elsewhere=is_elsewhere(device)),
        footprints=tuple(_footprint(name, run) for name in names),
        traffic=_traffic(run),
    )


def _as_dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if dtype is None or (isinstance(found, torch.dtype) and found.is_floating_point):
        return found
    raise ValueError(f"dtype must be a floating-point dtype such as bfloat16 or float32, got {dtype!r}")


def _footprint(name: str, run: PlannedRun) -> Footprint:
    peak = _step_peak(run.ours, run.settings) if name == "ldadamw" else _PEAK_OF_PEERS.get(name)
    return replace(footprint_without_peak(name, run), step_peak=peak)


def footprint_without_peak(name: str, run: PlannedRun) -> Footprint:
    """The footprint but for the peak of the step, which takes seconds to find: a lower bound."""
    settings, shards = run.settings, run.shards
    gradients = [shard.local.nbytes for shard in shards]
    frozen = sum(local_part(weight, settings.parts).nbytes for weight in run.model.frozen)
    is_ours, is_divided = name == "ldadamw", settings.devices > 1
    packing = {"sharding": settings.sharding, "packed": not settings.step_in_backward}
    return Footprint(
        optimizer=name,
        weights=sum(gradients) + frozen,
        gradients=_gradients(shards, settings),
        state=_state(name, shards),
        step_peak=None,
        messages=message_bytes(shards, **packing) if is_ours and is_divided else 0,
        activations=_activations(run.model, shards, settings),
        gathered=gathered_bytes(shards) if settings.parts > 1 else 0,
        step_in_backward=settings.step_in_backward,
    )


def _gradients(shards: Sequence[Shard], settings: Settings) -> int:
    """Bytes of the gradients that are alive at once; compressed, DDP averages those of dense weights after the hook."""
    if not settings.step_in_backward:
        return sum(shard.local.nbytes for shard in shards)
    stays = settings.sharding == "compressed" and settings.devices > 1
    dense = sum(shard.local.nbytes for shard in shards if stays and shard.layout is None)
    return dense + max((shard.local.nbytes for shard in shards if not (stays and shard.layout is None)), default=0)


# What is known of peers: torch's fused AdamW works in place.
_PEAK_OF_PEERS = {"adamw": 0}


def _state(name: str, shards: list[Shard]) -> StateBytes:
    if name in PEERS:
        return PEERS[name]([(shard.local, shard.local_layout) for shard in shards])
    return sort_state(
        (planned_bytes(shard.local, shard.local_layout, shard.hyper), shard.layout is not None) for shard in shards
    )


def _step_peak(ours: LDAdamW, settings: Settings) -> int | None:
    """None for what torch.compile will make of the step, and where it runs side by side for all shards."""
    side_by_side = settings.devices > 1 and settings.sharding != "ddp" and not settings.step_in_backward
    if settings.options["backend"] == "compiled" or side_by_side:
        return None
    peak = single_step_peak if settings.step_in_backward else step_peak
    return peak(ours.param_groups, device=torch.device(settings.device))


def _activations(model: PlannedModel, shards: list[Shard], settings: Settings) -> int | None:
    if model.llama is None or settings.batch is None or settings.seq is None:
        return None
    return activation_bytes(
        model.llama,
        tokens=settings.batch * settings.seq,
        itemsize=max(shard.param.itemsize for shard in shards),
        checkpointing=settings.checkpointing,
    )


def _traffic(run: PlannedRun) -> tuple[Collective, ...]:
    shards, settings = run.shards, run.settings
    if settings.devices == 1:
        return ()
    places = {name: place for place, name in enumerate(run.model.names)}
    in_order = sorted(shards, key=lambda shard: places[shard.name])
    sharding, packed = settings.sharding, not settings.step_in_backward
    step = traffic_of_step(shards, sharding=sharding, packed=packed) if settings.optimizer == "ldadamw" else []
    return (*traffic_of_passes(in_order, sharding=sharding), *step)

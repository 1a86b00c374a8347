"""A plan in words and rows: the parts of a footprint, and what to say beside them."""

from __future__ import annotations

from ldadam.planner.footprint import CARDS, RESERVED_BYTES, Footprint
from ldadam.planner.planning import Plan

GIB = 2**30


def parts(footprint: Footprint) -> dict[str, int | None]:
    """Bytes by what they are for, in the order of the table; None for what is not known."""
    state = footprint.state
    return {
        "weights": footprint.weights,
        "largest gradient" if footprint.step_in_backward else "gradients": footprint.gradients,
        "bases or projections": state.basis,
        "low-rank moments": state.moments,
        "dense moments": state.dense_moments,
        "error buffer": state.error_buffer,
        "counters": state.step,
        "peak of the step": footprint.step_peak,
        "packed messages": footprint.messages,
        "activations": footprint.activations,
        "gathered by FSDP": footprint.gathered,
    }


def parts_at_peak(footprint: Footprint) -> dict[str, int | None]:
    """The parts that are alive together at the peak: their sum is the total."""
    found = parts(footprint)
    if footprint.step_in_backward:
        return found
    of_passes, of_step = ("activations", "gathered by FSDP"), ("peak of the step", "packed messages")
    absent = of_passes if footprint.step > footprint.passes else of_step
    return {part: num_bytes for part, num_bytes in found.items() if part not in absent}


def title(plan: Plan) -> str:
    """What is planned, in one line."""
    settings, options = plan.settings, plan.settings.options
    words = [f"{plan.model}: {_count(plan.num_weights)} weights in {plan.dtype}, rank {options['rank']}"]
    if options["error_feedback"]:
        words.append(f"error buffer in {str(options['error_dtype'] or plan.dtype).removeprefix('torch.')}")
    else:
        words.append("no error feedback")
    if settings.batch:
        words.append(f"{settings.batch} x {settings.seq} tokens")
    words += [word for word, is_on in _switches(plan) if is_on]
    return ", ".join(words)


def _switches(plan: Plan) -> list[tuple[str, bool]]:
    settings = plan.settings
    return [
        ("step in backward", settings.step_in_backward),
        ("checkpointing", settings.checkpointing),
        (f"on each of {settings.devices} devices ({settings.sharding})", settings.devices > 1),
    ]


def remarks(plan: Plan) -> list[str]:
    """What the table does not say: the cards, the backend, what is estimated, and what is sent."""
    footprint, settings = plan.footprint, plan.settings
    lines = [f"{footprint.optimizer} {fits(footprint)}; {RESERVED_BYTES / GIB:.0f} GiB is left for CUDA itself."]
    lines.append(f"Backend of LDAdamW: {plan.backend}.")
    if footprint.activations is None:
        why = "give --batch and --seq" if settings.batch is None else "known for Llama-like models only"
        lines.append(f"Activations: not estimated ({why}).")
    if footprint.passes and not footprint.step_in_backward:
        lines.append("Activations and the step are not alive together: the total has the larger.")
    if settings.devices > 1:
        lines.append(f"Each device sends {size(plan.sent_bytes, GIB)} GiB a step.")
    return lines


def fits(footprint: Footprint) -> str:
    """On which cards, in words."""
    if not footprint.cards:
        return f"fits on no card of up to {CARDS[-1]} GB"
    return f"fits on a card of {footprint.cards[0]} GB"


def unit_of(plan: Plan) -> tuple[str, int]:
    """The unit that the table is in: GiB, or MiB for small models."""
    largest = max(footprint.total for footprint in plan.footprints)
    return ("GiB", GIB) if largest >= GIB else ("MiB", 2**20)


def size(num_bytes: int | None, unit: int) -> str:
    """A size to two decimals; "?" for what is not known, nothing for zero."""
    if not num_bytes:
        return "?" if num_bytes is None else ""
    return "<0.01" if 0 < num_bytes < 0.005 * unit else f"{num_bytes / unit:.2f}"


def _count(number: int) -> str:
    return f"{number / 1e9:.2f} B" if number >= 1e9 else f"{number / 1e6:.2f} M"

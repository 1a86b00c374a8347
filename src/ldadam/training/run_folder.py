"""The folder of a run: who made it, with what, and whether it can be used."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ldadam import provenance
from ldadam.provenance import command, hardware
from ldadam.training import checkpoints
from ldadam.training.config_file import read_config_file
from ldadam.training.errors import UsageError
from ldadam.training.launch import program
from ldadam.training.metrics import METRICS_FILE, MetricsFile, read_metrics
from ldadam.training.optimizers import find_optimizer
from ldadam.training.run_config import Config, RunConfig, differences, merge, save_config

CONFIG_FILE = "config.yaml"
RUN_FILE = "run.json"


def refuse_existing(run: Path) -> None:
    """Refuse a folder that already holds a run."""
    if (run / CONFIG_FILE).exists():
        raise UsageError(f"{run} already holds a run: add --resume to continue it, or choose another --out")
    if run.exists() and not run.is_dir():
        raise UsageError(f"out must be a folder, and {run} is a file")


# What runs did that were begun before these settings existed.
_BEFORE = {"dense_lr_scale": 1.0, "scaled_residual": False}


def reopen(settings: dict[str, Any], kind: type[Config], resolve: Callable[[dict[str, Any]], Config]) -> Config:
    """The configuration of the run to be resumed, with those of `settings` that may change."""
    run = Path(settings.get("out") or kind.out)
    if not (run / CONFIG_FILE).exists():
        raise UsageError(f"{run} holds no run to resume: there is no {CONFIG_FILE}; leave out --resume to start one")
    if (subcommand := _subcommand(run)) != kind.subcommand:
        raise UsageError(f"{run} holds a run of `ldadam {subcommand}`, which resumes it")
    recorded = recorded_settings(run, kind)
    if not find_optimizer(recorded["optimizer"]).resumes:
        raise UsageError(
            f"{run} was trained with {recorded['optimizer']}, whose state holds more than tensors and is not read from "
            "checkpoints: begin anew, in another --out"
        )
    if settings.get("parallel") is not None:
        recorded["shard_size"] = None  # belongs to the layout that it was recorded with
    saved = kind(**{**recorded, "out": str(run)})
    # A preset or optimizer named again must not bring its defaults back over what was recorded.
    asked = dataclasses.replace(saved, **{k: v for k, v in merge(settings).items() if k != "tokens"})
    if settings.get("tokens") is not None:
        asked = dataclasses.replace(asked, steps=resolve({**recorded, "steps": None, **settings}).steps)
    if changed := differences(saved, asked):
        raise UsageError(f"{run} cannot be resumed with other settings: {'; '.join(changed)}; choose another --out")
    return asked


def recorded_settings(run: Path, kind: type[RunConfig]) -> dict[str, Any]:
    """What a run was begun with; settings that are younger than it have what it did then."""
    recorded = read_config_file(run / CONFIG_FILE, kind)
    options = find_optimizer(recorded["optimizer"]).options
    return {name: value for name, value in _BEFORE.items() if name in options} | recorded


def _subcommand(run: Path) -> str:
    """The subcommand that began a run."""
    record = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    if "subcommand" not in record:
        raise UsageError(f"{run} was begun by an older ldadam, whose runs cannot be resumed: choose another --out")
    return record["subcommand"]


def create(run: Path, config: RunConfig, facts: dict[str, Any]) -> None:
    """Make the folder and write the resolved configuration and the circumstances of the run."""
    run.mkdir(parents=True, exist_ok=True)
    save_config(config, run / CONFIG_FILE)
    made_by = {"subcommand": config.subcommand, "command": command(), "seed": config.seed}
    package = find_optimizer(config.optimizer).package_version
    record = {**made_by, **versions(), "optimizer_package": package, "hardware": hardware(), **facts}
    (run / RUN_FILE).write_text(json.dumps(record, indent=1), encoding="utf-8")


def record_layout(run: Path, config: RunConfig, *, world_size: int, after_step: int) -> None:
    """Add to the record from which step on the run was shared by how many processes, and how."""
    record = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    part = {"after_step": after_step, "parallel": config.parallel, "world_size": world_size}
    record["layouts"] = [*record.get("layouts", []), part]
    temporary = (run / RUN_FILE).with_suffix(".partial")
    temporary.write_text(json.dumps(record, indent=1), encoding="utf-8")
    temporary.replace(run / RUN_FILE)


def check_same_circumstances(run: Path, fingerprint: str) -> None:
    """A resumed run must see the data that it began with; with another torch it is told what to expect."""
    begun = json.loads((run / RUN_FILE).read_text(encoding="utf-8"))
    if begun["fingerprint"] != fingerprint:
        raise UsageError(
            f"{run} cannot be resumed: the data has changed since the run began; restore it, or choose another --out"
        )
    now = versions()
    changed = [f"{name} {begun[name]} is now {now[name]}" for name in ("python", "torch") if begun[name] != now[name]]
    if changed:
        print(f"ldadam: {'; '.join(changed)}: numbers may differ from an uninterrupted run", file=sys.stderr)


def prepare_resume(run: Path, *, num_steps: int) -> Path | None:
    """The checkpoint to go on from, verified, with later metrics dropped; None if none was completed.

    Raises:
        UsageError: the run has made all of its `num_steps`, and no checkpoint is left.
    """
    checkpoints.remove_partial(run)
    saved = checkpoints.checkpoint_steps(run)
    if saved:
        checkpoints.verify(list(saved.values())[-1])
    elif (records := read_metrics(run / METRICS_FILE)) and records[-1]["step"] >= num_steps:
        raise UsageError(f"{run} has come to its end and kept no checkpoint: train it anew in another --out")
    MetricsFile(run / METRICS_FILE).truncate_after(max(saved, default=0))
    return list(saved.values())[-1] if saved else None


def what_can_be_resumed(run: Path) -> str:
    """What to do with a run that stopped before its end."""
    saved = list(checkpoints.checkpoint_steps(run).values())
    if not saved:
        return "there is no checkpoint yet, start again"
    again = f"{program()} {_subcommand(run)} --resume --out {run}"
    return f"the last good checkpoint is {saved[-1].name}, continue with `{again}`"


def versions() -> dict[str, Any]:
    """Versions of everything that shapes the numbers."""
    return provenance.versions(("torch", "transformers", "accelerate", "datasets", "tokenizers", "numpy"))

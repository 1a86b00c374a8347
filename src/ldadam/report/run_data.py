"""What a run folder says about its run."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldadam.training.errors import UsageError
from ldadam.training.metrics import METRICS_FILE, read_metrics

Series = tuple[list[float], list[float]]


@dataclass(frozen=True)
class RunData:
    """One run, as its files tell it."""

    name: str
    config: dict[str, Any]
    facts: dict[str, Any]  # run.json: versions, hardware, seed
    memory: dict[str, Any]
    metrics: list[dict[str, Any]]

    def series(self, value: str, *, against: str = "step") -> Series:
        """(x, y) of all records that hold `value`."""
        records = [record for record in self.metrics if value in record]
        return [record[against] for record in records], [record[value] for record in records]

    def per_name(self, value: str) -> tuple[list[int], dict[str, list[float]]]:
        """Steps, and what each record says under `value` by name: of a matrix, or of a score. Empty where none does."""
        records = [record for record in self.metrics if record.get(value)]
        names = list(records[-1][value]) if records else []
        steps = [record["step"] for record in records]
        return steps, {name: [record[value].get(name, float("nan")) for record in records] for name in names}

    def scores(self) -> dict[str, float]:
        """What the last evaluation of a fine-tuned model gave."""
        return {name: values[-1] for name, values in self.per_name("scores")[1].items()}

    def weighted_total(self, value: str) -> float:
        """Sum over steps of a per-step average."""
        total, last_step = 0.0, 0
        for record in self.metrics:
            total += record[value] * (record["step"] - last_step)
            last_step = record["step"]
        return total

    def summary(self) -> dict[str, Any]:
        """The numbers that a comparison shows."""
        last = self.metrics[-1]
        _, validation = self.series("val_loss")
        optimizer_seconds = self.weighted_total("optimizer_seconds")
        return {
            "run": self.name,
            "optimizer": self.config["optimizer"],
            "rank": self.config.get("rank"),
            "lr": self.config["lr"],
            "steps": last["step"],
            "tokens": last["tokens"],
            "final_validation_loss": validation[-1] if validation else None,
            "final_scores": self.scores(),
            "seconds": last["seconds"],
            "optimizer_seconds": optimizer_seconds,
            "optimizer_share": optimizer_seconds / last["seconds"],
            "optimizer_bytes": sum(self.memory["counted"]["optimizer"].values()),
            "weight_bytes": self.memory["counted"]["weights"],
            "parameters": self.facts["parameters"],
        }


def load_run(folder: Path, *, name: str | None = None) -> RunData:
    """Read a run folder; one that is missing something is an error that says what."""
    import yaml

    for file in ("config.yaml", "run.json", "memory.json", METRICS_FILE):
        if not (folder / file).exists():
            raise UsageError(f"{folder} is no folder of a run that has begun: {file} is missing")
    metrics = read_metrics(folder / METRICS_FILE)
    if not metrics:
        raise UsageError(f"{folder} has no metrics yet: its metrics.jsonl is empty")
    return RunData(
        name=name or folder.resolve().name,
        config=yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8")),
        facts=json.loads((folder / "run.json").read_text(encoding="utf-8")),
        memory=json.loads((folder / "memory.json").read_text(encoding="utf-8")),
        metrics=metrics,
    )


def module_kind(matrix: str) -> str:
    """`q_proj` of `model.layers.3.self_attn.q_proj.weight`."""
    parts = [part for part in matrix.split(".") if part != "weight"]
    return parts[-1] if parts else matrix


def layer_number(matrix: str) -> int:
    """3 of `model.layers.3.self_attn.q_proj.weight`; 0 without a number."""
    found = re.search(r"\.(\d+)\.", matrix)
    return int(found[1]) if found else 0


def by_kind(matrices: dict[str, list[float]]) -> dict[str, list[list[float]]]:
    """Rows of the matrices grouped by module kind, layers in order."""
    groups: dict[str, list[list[float]]] = {}
    for name in sorted(matrices, key=layer_number):
        groups.setdefault(module_kind(name), []).append(matrices[name])
    return groups

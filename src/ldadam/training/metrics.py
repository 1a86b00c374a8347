"""metrics.jsonl: one line per logged step, every number at full precision."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

METRICS_FILE = "metrics.jsonl"

# Fields that differ between two runs of the same thing.
TIME_FIELDS = ("seconds", "step_seconds", "optimizer_seconds", "tokens_per_second")


class MetricsFile:
    """Appends records; each is one line, written in one call, so that a kill leaves whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, record: dict[str, Any]) -> None:
        """Add one line."""
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(record) + "\n")

    def truncate_after(self, step: int) -> None:
        """Drop what a killed run wrote after its last checkpoint, a broken last line included."""
        kept = [json.dumps(record) + "\n" for record in read_metrics(self.path) if record["step"] <= step]
        temporary = self.path.with_suffix(".partial")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self.path)


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a metrics file; none if there is no file."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break  # only the last line of a killed run can be broken
    return records

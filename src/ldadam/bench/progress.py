"""What is shown while optimizers are timed, and the table of each finished model and rank."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as RichProgress
from rich.table import Table


class Progress:
    """A live bar on a terminal; elsewhere a line for each stage."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._live = self._console.is_terminal
        self._bar = RichProgress(
            TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), console=self._console, transient=True
        )
        self._task = self._bar.add_task("", total=None)
        self._title = ""

    def __enter__(self) -> Progress:
        if self._live:
            self._bar.start()
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._live:
            self._bar.stop()

    def now(self, stage: str) -> None:
        """A stage without steps to count begins."""
        self._bar.update(self._task, description=stage, total=None, completed=0)
        if not self._live:
            self._console.print(stage, highlight=False, soft_wrap=True)

    def begin(self, title: str, *, num_visits: int) -> None:
        """The timing of a model at a rank begins."""
        self._title = title
        self.now(f"{title}: timing")
        self._bar.update(self._task, total=num_visits, completed=0)

    def visited(self, name: str) -> None:
        """An optimizer was timed."""
        self._bar.update(self._task, advance=1, description=f"{self._title}: {name}")

    def finished(self, record: dict[str, Any], result: dict[str, Any]) -> None:
        """Print the table of a model at a rank on stdout."""
        console = Console()
        if not console.is_terminal:
            console = Console(width=150)
        console.print(table_of(record, result))
        for row in result["optimizers"]:
            if row["status"] != "ok":
                console.print(f"{row['name']}: {row['status']}", highlight=False, soft_wrap=True, markup=False)


def table_of(record: dict[str, Any], result: dict[str, Any]) -> Table:
    """The optimizers that were timed, one a row."""
    hardware = record["hardware"]
    machine = hardware["gpu"] if record["device"] == "cuda" else f"threads: {hardware['threads']}"
    table = Table(
        title=f"{result['model']}, rank {result['rank']}: {result['num_weights'] / 1e6:.1f} M weights, "
        f"{record['dtype']}, {record['device']} ({machine})",
        caption=_caption(record["ceilings"], result),
    )
    table.add_column("optimizer", no_wrap=True)
    headings = ("first ms", "step ms", "min–max ms", "host ms", "× adamw", "GB/s", "TFLOP/s", "state MB", "extra MB")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for row in result["optimizers"]:
        if row["status"] == "ok":
            table.add_row(row["name"], *_cells(row))
            if "amortised_seconds" in row:
                ratio = _ratio(row["amortised_ratio_to_adamw"])
                table.add_row(f"{row['name']}, amortised", "", _milli(row["amortised_seconds"]), "", "", ratio)
    return table


def _caption(ceilings: dict[str, float], result: dict[str, Any]) -> str:
    lines = [
        f"memory reaches {_giga(ceilings['bytes_per_second'])} GB/s, a product "
        f"{ceilings['operations_per_second'] / 1e12:.3g} TFLOP/s; "
        + ("optimizers in turn" if result["together"] else "optimizers in turn, each alone in memory")
    ]
    lines += [f"{each['backend']} equals the page to {each['distance']:.0e}" for each in result["equality"]]
    return "\n".join(lines)


def _cells(row: dict[str, Any]) -> list[str]:
    return [
        _milli(row["first_step_seconds"]),
        _milli(row["median_seconds"]),
        f"{_milli(row['min_seconds'])}–{_milli(row['max_seconds'])}",
        _milli(row["host_median_seconds"]),
        _ratio(row["ratio_to_adamw"]),
        f"{_giga(row['bytes_per_second'])} ({row['share_of_bandwidth']:.0%})" if "bytes" in row else "",
        f"{row['operations_per_second'] / 1e12:.3g} ({row['share_of_product']:.0%})" if "bytes" in row else "",
        _mega(row["state_bytes"]),
        _mega(row["extra_bytes"]),
    ]


def _ratio(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _milli(seconds: float) -> str:
    return f"{1e3 * seconds:.4g}"


def _giga(rate: float) -> str:
    return f"{rate / 1e9:.3g}" if rate < 1e12 else f"{rate / 1e9:.0f}"


def _mega(size: int | None) -> str:
    return "" if size is None else f"{size / 1e6:.1f}"

"""`ldadam plan`: the table, the JSON and the picture of a plan."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from ldadam import provenance
from ldadam.planner.parts import GIB, parts, remarks, size, title, unit_of
from ldadam.planner.planning import Plan, plan
from ldadam.training.errors import UsageError
from ldadam.training.files import make_folder_of


def run_plan(*, rank: str, json_file: Path | None, picture: Path | None, **settings: Any) -> Plan:
    """Plan, print the table, and write what is asked for.

    Raises:
        UsageError: an option is out of range, the model is unknown, or a file cannot be written.
    """
    try:
        planned = plan(rank=_rank(rank), **settings)
    except ValueError as error:
        raise UsageError(str(error)) from error
    _print(planned)
    if json_file is not None:
        make_folder_of(json_file, option="--json")
        json_file.write_text(json.dumps(as_record(planned), indent=1) + "\n", encoding="utf-8")
        print(f"Numbers: {json_file}")
    if picture is not None:
        from ldadam.planner.picture import draw

        make_folder_of(picture, option="--picture")
        draw(planned).savefig(picture, dpi=150)
        print(f"Picture: {picture}")
    return planned


def _rank(text: str) -> int | float | None:
    if text.isdecimal():
        return int(text)
    try:
        return float(text)
    except ValueError:
        raise UsageError(f"--rank must be a whole number, or a fraction of the shorter side, got {text!r}") from None


def as_record(planned: Plan) -> dict[str, Any]:
    """The plan as plain numbers, all sizes in bytes, with where they come from."""
    record = {"command": provenance.command(), **provenance.versions(("torch",)), **asdict(planned)}
    record["sent_bytes"] = planned.sent_bytes
    for row, footprint in zip(record["footprints"], planned.footprints, strict=True):
        row |= {"total": footprint.total, "state_total": footprint.state.total, "cards": footprint.cards}
    return record


def _print(planned: Plan) -> None:
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)
    console.print(table_of(planned))
    if planned.traffic:
        console.print(traffic_table_of(planned))
    for line in remarks(planned):
        console.print(line, highlight=False, markup=False)


def table_of(planned: Plan) -> Table:
    """The parts as rows, the optimizers as columns; rows that are zero for all are left out."""
    name, unit = unit_of(planned)
    columns = [parts(footprint) for footprint in planned.footprints]
    table = Table(title=title(planned), show_footer=True)
    table.add_column(name, no_wrap=True, footer="total\nfits on a card of")
    for footprint in planned.footprints:
        card = f"{footprint.cards[0]} GB" if footprint.cards else "none"
        footer = f"{size(footprint.total, unit)}\n{card}"
        table.add_column(footprint.optimizer, justify="right", no_wrap=True, footer=footer)
    for part in columns[0]:
        if any(column[part] for column in columns):
            table.add_row(part, *(size(column[part], unit) for column in columns))
    return table


def traffic_table_of(planned: Plan) -> Table:
    """The collectives of a step, in their order."""
    table = Table(title=f"collectives of a step with {planned.footprint.optimizer}")
    for heading in ("when", "what", "how"):
        table.add_column(heading)
    for heading in ("GiB", "calls"):
        table.add_column(heading, justify="right")
    for each in planned.traffic:
        table.add_row(each.phase, each.what, each.kind.replace("_", "-"), size(each.num_bytes, GIB), str(each.count))
    return table

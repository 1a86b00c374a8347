"""One HTML file with everything in it: no scripts, no network, images as data."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from ldadam.report.figures import draw_all, draw_one, panel_title, panels_for
from ldadam.report.run_data import RunData, load_run

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1c2128; max-width: 1180px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.6em; margin-bottom: 0.2em; } h2 { font-size: 1.15em; margin: 1.6em 0 0.4em; }
p.sub, figcaption { color: #57606a; margin-top: 0; } figcaption { font-size: 0.9em; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(500px, 1fr)); gap: 1.2em 2em; }
figure { margin: 0; } figure h2 { margin-top: 0.4em; } img { width: 100%; height: auto; }
table { border-collapse: collapse; } th, td { text-align: left; padding: 0.25em 1.2em 0.25em 0; vertical-align: top; }
tr { border-bottom: 1px solid #e6e9ed; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
td.differs { background: #fff6e0; } details { margin: 1em 0; } summary { cursor: pointer; font-weight: 600; }
"""


def write_report(folders: Sequence[Path], out: Path, *, names: Sequence[str] | None = None) -> Path:
    """Write `report.png` and `report.html` into `out` and return the page's path."""
    runs = [load_run(folder, name=name) for folder, name in zip(folders, names or _names(folders), strict=True)]
    title = f"{runs[0].facts['title']}: {' and '.join(run.name for run in runs)}"
    out.mkdir(parents=True, exist_ok=True)
    draw_all(runs, title).savefig(out / "report.png", dpi=110)
    page = out / "report.html"
    page.write_text(render(runs, title), encoding="utf-8")
    return page


def _names(folders: Sequence[Path]) -> list[str]:
    """Folder names, or whole paths where two folders are called the same."""
    short = [folder.resolve().name for folder in folders]
    return short if len(set(short)) == len(short) else [str(folder) for folder in folders]


def render(runs: Sequence[RunData], title: str) -> str:
    """The page as text."""
    figures = "".join(
        f"<figure><h2>{html.escape(panel_title(panel, runs))}</h2>"
        f"{image(draw_one(panel, runs), alt=panel.title)}<figcaption>{_prose(panel.caption)}</figcaption></figure>"
        for panel in panels_for(runs)
    )
    return (
        f"<!doctype html><html lang='en'><head><meta charset='utf-8'><title>{html.escape(title)}</title>"
        f"<meta name='viewport' content='width=device-width'><style>{STYLE}</style></head><body>"
        f"<h1>{html.escape(title)}</h1><p class='sub'>{html.escape(_circumstances(runs[0]))}</p>"
        f"{summary_table(runs)}<div class='panels'>{figures}</div>"
        f"<details open><summary>Settings</summary>{settings_table(runs)}</details>"
        f"<details><summary>Versions and hardware</summary>{facts_table(runs)}</details></body></html>"
    )


def _circumstances(run: RunData) -> str:
    hardware = run.facts["hardware"]
    device = hardware.get("gpu") or f"{hardware['processor']}, {hardware['threads']} threads"
    return (
        f"{run.facts['parameters'] / 1e6:.1f} M parameters, {run.metrics[-1]['tokens']:,} training tokens, {device}, "
        f"torch {run.facts['torch']}, commit {run.facts['commit'] or 'unknown'}"
    )


def _prose(text: str) -> str:
    """Escaped text with `code` in backquotes."""
    pieces = html.escape(text).split("`")
    return "".join(f"<code>{piece}</code>" if index % 2 else piece for index, piece in enumerate(pieces))


def image(figure: Figure, *, alt: str) -> str:
    """A figure as an <img> that carries its own data."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=140, format="png")
    data = base64.b64encode(buffer.getvalue()).decode()
    return f"<img alt='{html.escape(alt)}' src='data:image/png;base64,{data}'>"


def summary_rows(runs: Sequence[RunData]) -> tuple[list[str], list[list[str]]]:
    """Headings and cells of the comparison: the same for the page, the terminal and Markdown."""
    scores = list(dict.fromkeys(name for run in runs for name in run.scores()))
    headings = [
        *("run", "rank", "peak lr", "validation loss", *(name.replace("_", " ") for name in scores), "training (s)"),
        *("optimizer (s)", "optimizer share", "optimizer state (MiB)"),
    ]
    rows = []
    for run in runs:
        found = run.summary()
        loss = found["final_validation_loss"]
        rows.append(
            [
                found["run"],
                "full" if found["rank"] is None else f"{found['rank']:g}",
                f"{found['lr']:g}",
                "-" if loss is None else f"{loss:.4f}",
                *(f"{run.scores()[name]:.4f}" if name in run.scores() else "-" for name in scores),
                f"{found['seconds']:.1f}",
                f"{found['optimizer_seconds']:.1f}",
                f"{100 * found['optimizer_share']:.1f} %",
                f"{found['optimizer_bytes'] / 2**20:.1f}",
            ]
        )
    return headings, rows


def markdown_table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table for a page: the first column to the left, numbers to the right."""
    lines = [headings, ["---", *("---:" for _ in headings[1:])], *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def summary_table(runs: Sequence[RunData]) -> str:
    """The comparison as an HTML table."""
    headings, rows = summary_rows(runs)
    return _table(headings, rows, number_columns=range(1, len(headings)))


def settings_table(runs: Sequence[RunData]) -> str:
    """All settings; those that differ between runs are marked."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    return _comparison({name: [run.config.get(name) for run in runs] for name in names}, runs)


def facts_table(runs: Sequence[RunData]) -> str:
    """Versions, hardware and commands."""
    flat = [{**run.facts, **run.facts["hardware"]} for run in runs]
    names = dict.fromkeys(name for facts in flat for name in facts if name != "hardware")
    return _comparison({name: [facts.get(name) for facts in flat] for name in names}, runs)


def _comparison(values: dict[str, list[Any]], runs: Sequence[RunData]) -> str:
    rows = [[name, *("-" if value is None else str(value) for value in row)] for name, row in values.items()]
    differing = {index for index, row in enumerate(rows) if len(set(row[1:])) > 1}
    return _table(["", *(run.name for run in runs)], rows, marked_rows=differing)


def _table(
    headings: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    number_columns: Sequence[int] = (),
    marked_rows: set[int] | None = None,
) -> str:
    def cell(tag: str, column: int, text: str, marked: bool) -> str:
        classes = [*(["number"] if column in number_columns else []), *(["differs"] if marked and column else [])]
        return f"<{tag} class='{' '.join(classes)}'>{html.escape(text)}</{tag}>"

    head = "".join(cell("th", column, text, False) for column, text in enumerate(headings))
    body = "".join(
        "<tr>"
        + "".join(cell("td", column, text, index in (marked_rows or ())) for column, text in enumerate(row))
        + "</tr>"
        for index, row in enumerate(rows)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"

"""The tables and pictures of studies in the documentation, from their records: `python benchmarks/tables.py`.

A page says `<!-- study: benchmarks/results/NAME.json -->` before a table and `<!-- end -->` after it; what lies between
is made here. With `, no times` after the file's name the table has no seconds; with `, only times` it has no losses,
for a study that was made to time steps; with `, times of OTHER.json` seconds are those of the other study, which was
made on an idle machine: its seconds a step, times the steps that a row trains here. Where there is a picture
docs/images/NAME.png, it is drawn anew.
"""

import json
import re
from pathlib import Path

from ldadam.comparison.pictures import draw_study
from ldadam.comparison.results import steps_of, table_of
from ldadam.report.page import markdown_table

ROOT = Path(__file__).resolve().parents[1]
STUDY = re.compile(
    r"(<!-- study: (\S+?)(?:, (no times|only times)|, times of (\S+))? -->\n).*?(<!-- end -->)", flags=re.DOTALL
)


def rendered(page):
    """The page with every table as its record says it."""
    return STUDY.sub(lambda found: found[1] + _block(found[2], found[3], found[4]) + found[5], page)


def _block(file, columns, timed):
    record = _record(file, timed)
    made_by = _circumstances(record, file, of_times=columns == "only times")
    if timed:
        made_by += f" Times: {_circumstances(_read(timed), timed, of_times=True)}"
    table = times_of(record) if columns == "only times" else table_of(record, times=columns != "no times")
    return markdown_table(*table) + f"\n{made_by}\n\n"


def times_of(record):
    """Headings and cells: milliseconds of the optimizer's part of a step, and of the whole of it."""
    headings = ["optimizer", "optimizer (ms/step)", "whole step (ms)", "optimizer state (MiB)"]
    rows = []
    for row in record["contestants"]:
        if "failed" in row:
            rows.append([row["name"], "", "", ""])
            continue
        times = [_milliseconds(row["optimizer_seconds_per_step"], digits=1), _milliseconds(row["seconds_per_step"])]
        rows.append([row["name"], *times, f"{row['optimizer_bytes'][0] / 2**20:.1f}"])
    return headings, rows


def _milliseconds(seconds, *, digits=0):
    return " ± ".join(f"{1e3 * number:.{digits}f}" for number in seconds if number is not None)


def _read(file):
    return json.loads((ROOT / file).read_text(encoding="utf-8"))


def _record(file, timed):
    """The record of a study, with the times of another one where there is one."""
    record = _read(file)
    if not timed:
        return record
    others, a_step = {row["name"]: row for row in _read(timed)["contestants"]}, {}
    for row in record["contestants"]:
        # The same optimizer with another beta is not timed again.
        of_row = others.get(row["name"]) or others[row["optimizer"]]
        a_step[row["name"]] = of_row["seconds_per_step"][0]
        row["optimizer_seconds_per_step"] = of_row["optimizer_seconds_per_step"]
        row["seconds"] = [a_step[row["name"]] * steps_of(record, row), None]
    for trial in record["trials"]:
        taken = a_step[trial["contestant"]]
        trial["validation"] = [[step, step * taken, loss] for step, _, loss in trial["validation"]]
    return record


def _circumstances(record, file, *, of_times):
    trials, rows = record["trials"], record["contestants"]
    hardware = [trial["hardware"] for trial in trials]
    spread = "mean ± standard deviation over a row's "
    spread += "runs, without their first steps" if of_times else "seeds"
    if not of_times and max(len(row["lrs"]) for row in rows) > 1:
        spread += ", the first of which chose the learning rate"
    spread = f"{spread}; " if max(row.get("num_runs", 0) for row in rows) > 1 else ""
    return (
        f"{spread}{_each(trials, 'steps')} steps, {len(trials)} runs; {_each(hardware, 'processor')}, threads: "
        f"{_each(hardware, 'threads')}; torch {_each(trials, 'torch')}, transformers {_each(trials, 'transformers')}; "
        f"commit {_each(trials, 'commit')}; `{file}`."
    )


def _each(facts, name):
    """What the runs say under a name, all of it where they differ."""
    return ", ".join(sorted({str(one[name]) for one in facts}))


def draw_pictures(page):
    """Draw the picture of each study of a page that has one."""
    for _, file, columns, timed, _ in STUDY.findall(page):
        picture = ROOT / "docs/images" / f"{Path(file).stem}.png"
        if f"images/{picture.name})" in page:
            draw_study(_record(file, timed), picture, times=columns != "no times")
            print(picture.relative_to(ROOT))


def main():
    """Write every page anew."""
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        before = path.read_text(encoding="utf-8")
        draw_pictures(before)
        if (after := rendered(before)) != before:
            path.write_text(after, encoding="utf-8")
            print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

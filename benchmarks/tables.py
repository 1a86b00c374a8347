"""The tables and pictures of studies in the documentation, from their records: `python benchmarks/tables.py`.

A page says `<!-- study: benchmarks/results/NAME.json -->` before a table and `<!-- end -->` after it; what lies between
is made here. With `, no times` after the file's name the table has no seconds; with `, times of OTHER.json` they are
those of the other study, which was made on an idle machine: its seconds a step, times the steps of this one. Where
there is a picture docs/images/NAME.png, it is drawn anew.
"""

import json
import re
from pathlib import Path

from ldadam.comparison.pictures import draw_study
from ldadam.comparison.results import table_of
from ldadam.report.page import markdown_table

ROOT = Path(__file__).resolve().parents[1]
STUDY = re.compile(r"(<!-- study: (\S+?)(?:, (no times|times of \S+))? -->\n).*?(<!-- end -->)", flags=re.DOTALL)
NO_TIMES, OF_OTHER = "no times", "times of "


def rendered(page):
    """The page with every table as its record says it."""
    return STUDY.sub(lambda found: found[1] + _block(found[2], found[3]) + found[4], page)


def _block(file, times):
    table = markdown_table(*table_of(_record(file, times), times=times != NO_TIMES))
    made_by = _circumstances(_read(file), file)
    if times and times.startswith(OF_OTHER):
        other = times.removeprefix(OF_OTHER)
        made_by += f" Times: a step, but for the first ones, of {_circumstances(_read(other), other)}"
    return f"{table}\n{made_by}\n\n"


def _read(file):
    return json.loads((ROOT / file).read_text(encoding="utf-8"))


def _record(file, times):
    """The record of a study, with the times that a page asks for."""
    record = _read(file)
    if not (times and times.startswith(OF_OTHER)):
        return record
    other = {row["name"]: row for row in _read(times.removeprefix(OF_OTHER))["contestants"]}
    for row in record["contestants"]:
        row["optimizer_seconds_per_step"] = other[row["name"]]["optimizer_seconds_per_step"]
        row["seconds"] = [_seconds_per_step(other[row["name"]]) * record["settings"]["steps"], None]
    for trial in record["trials"]:
        a_step = _seconds_per_step(other[trial["contestant"]])
        trial["validation"] = [[step, step * a_step, loss] for step, _, loss in trial["validation"]]
    return record


def _seconds_per_step(row):
    return row["seconds_per_step"][0]


def _circumstances(record, file):
    trials, runs = record["trials"], max(row.get("num_runs", 0) for row in record["contestants"])
    hardware = [trial["hardware"] for trial in trials]
    spread = "mean ± standard deviation over a row's seeds, the first of which chose the learning rate; " * (runs > 1)
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
    for _, file, times, _ in STUDY.findall(page):
        picture = ROOT / "docs/images" / f"{Path(file).stem}.png"
        if f"images/{picture.name})" in page:
            draw_study(_record(file, times), picture, times=times != NO_TIMES)
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

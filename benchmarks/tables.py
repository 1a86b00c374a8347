"""The tables and pictures of studies in the documentation, from their records: `python benchmarks/tables.py`.

A page says `<!-- study: benchmarks/results/NAME.json -->` before a table and `<!-- end -->` after it; what lies between
is made here. With `, no times` after the file's name the table has no seconds. Where there is a picture
docs/images/NAME.png, it is drawn anew.
"""

import json
import re
from pathlib import Path

from ldadam.comparison.pictures import draw_study
from ldadam.comparison.results import table_of
from ldadam.report.page import markdown_table

ROOT = Path(__file__).resolve().parents[1]
STUDY = re.compile(r"(<!-- study: (\S+?)(, no times)? -->\n).*?(<!-- end -->)", flags=re.DOTALL)


def rendered(page):
    """The page with every table as its record says it."""
    return STUDY.sub(lambda found: found[1] + _block(found[2], times=not found[3]) + found[4], page)


def _block(file, *, times):
    record = json.loads((ROOT / file).read_text(encoding="utf-8"))
    return markdown_table(*table_of(record, times=times)) + f"\n{_circumstances(record, file)}\n\n"


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
    for _, file, without_times, _ in STUDY.findall(page):
        picture = ROOT / "docs/images" / f"{Path(file).stem}.png"
        if f"images/{picture.name})" in page:
            draw_study(json.loads((ROOT / file).read_text(encoding="utf-8")), picture, times=not without_times)
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

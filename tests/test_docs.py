"""The documentation runs: Python blocks of README and docs, and examples of docstrings. What it names exists."""

import doctest
import importlib
import json
import re
import runpy
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [path for path in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))) if path.exists()]
NOT_RUN = "<!-- not run -->"


def python_blocks(page: str) -> Iterator[tuple[int, str]]:
    """The number of the first line, and the text, of each Python block that is not marked on the line before."""
    lines = page.splitlines()
    start = None
    for number, line in enumerate(lines):
        if start is None and line.strip() == "```python":
            start = number + 1
        elif start is not None and line.strip() == "```":
            if start < 2 or lines[start - 2].strip() != NOT_RUN:
                yield start + 1, "\n".join(lines[start:number]) + "\n"
            start = None
    assert start is None, f"the block that starts in line {start} has no end"


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_the_python_blocks_of_a_page_run_in_order(page, tmp_path, monkeypatch):
    """In one namespace, so that a block may go on where the last one stopped; in an empty folder."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MPLBACKEND", "Agg")
    namespace = {"__name__": "__main__"}
    for line, block in python_blocks(page.read_text()):
        # Empty lines before the block make tracebacks point into the page.
        exec(compile("\n" * (line - 1) + block, str(page), "exec"), namespace)


def test_blocks_are_found_and_marked_ones_are_not():
    page = f"text\n```python\na = 1\n```\n{NOT_RUN}\n```python\nboom\n```\n```bash\nls\n```\n\n```python\nb = 2\n```\n"
    assert list(python_blocks(page)) == [(3, "a = 1\n"), (14, "b = 2\n")]


def test_each_line_of_the_methods_table_is_in_the_code_and_each_test_exists():
    page = (ROOT / "docs/method.md").read_text()
    rows = re.findall(r"\| `(.+)` \| `(test_\w+\.py)`: (.+) \|$", page, flags=re.MULTILINE)
    code = {
        line.split("#")[0].strip()
        for module in ("algorithm", "subspace")
        for line in (ROOT / f"src/ldadam/{module}.py").read_text().splitlines()
    }
    assert len(rows) == 15 + 3  # the paper, and the scaled residual
    for statement, file, test in rows:
        assert statement in code
        assert_exists(f"tests/{file}::test_{test.replace(' ', '_')}")


def assert_exists(test: str) -> None:
    file, name = test.split("::")
    assert f"def {name}(" in (ROOT / file).read_text(), test


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_what_a_page_names_exists(page):
    """Tests, files of results, scripts and sources in backticks."""
    text = page.read_text()
    for test in re.findall(r"`(tests/[\w/]+\.py::\w+)`", text):
        assert_exists(test)
    for file in re.findall(r"`((?:tests|benchmarks|examples|src|docs)/[\w/.-]+\.\w+)`", text):
        assert (ROOT / file).exists(), file


@pytest.mark.parametrize("page", PAGES[1:], ids=[str(path.relative_to(ROOT)) for path in PAGES[1:]])
def test_lines_of_code_fit_the_page(page):
    """What docs/site.css has room for on a screen of 1280 pixels; the rest of a line would be cut."""
    parts = re.split(r"^```.*$", page.read_text(), flags=re.MULTILINE)
    assert not [line for code in parts[1::2] for line in code.splitlines() if len(line) > 96]


SOURCE = ROOT / "src"
WITH_EXAMPLES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts)
    for path in sorted((SOURCE / "ldadam").rglob("*.py"))
    if ">>>" in path.read_text()
]


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_the_examples_of_docstrings_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    failed, attempted = doctest.testmod(importlib.import_module(module), optionflags=doctest.ELLIPSIS)
    assert attempted > 0 and failed == 0


def test_the_quality_of_buffers_is_that_of_the_recorded_runs():
    benchmark = runpy.run_path(str(ROOT / "benchmarks/buffer_quality.py"))
    found = json.loads(benchmark["RESULTS"].read_text())
    assert benchmark["table"](found) in (ROOT / "docs/memory.md").read_text()
    assert not any(run["commit"].endswith("-dirty") for run in found["runs"])


@pytest.mark.parametrize("page", PAGES, ids=[str(path.relative_to(ROOT)) for path in PAGES])
def test_the_tables_of_studies_are_those_of_their_records(page):
    tables = runpy.run_path(str(ROOT / "benchmarks/tables.py"))
    assert tables["rendered"](page.read_text()) == page.read_text()


def test_a_number_without_a_run_behind_it_is_found():
    tables = runpy.run_path(str(ROOT / "benchmarks/tables.py"))
    page = (ROOT / "docs/recipes/minilm.md").read_text()
    digit = page.index(" MiB") if " MiB" in page else page.index("± ") + 4
    changed = page[:digit] + ("1" if page[digit] != "1" else "2") + page[digit + 1 :]
    assert tables["rendered"](changed) == page


def test_the_table_of_the_readme_is_that_of_its_record():
    page, record = (ROOT / "README.md").read_text(), json.loads((ROOT / "benchmarks/results/demo.json").read_text())
    for run in record["runs"]:
        numbers = f"{run['final_validation_loss']:.4f} | {run['seconds']:.1f} | {run['optimizer_seconds']:.1f}"
        rest = f"{100 * run['optimizer_share']:.1f} % | {run['optimizer_bytes'] / 2**20:.1f} |"
        assert f"| {run['run']} | {run['rank'] or 'full'} | {run['lr']} | {numbers} | {rest}\n" in page


def prose(page: str) -> str:
    """Without tables, code and what is made by `make tables`."""
    page = re.sub(r"<!-- study: .*?<!-- end -->|```.*?```", "", page, flags=re.DOTALL)
    return "\n".join(line for line in page.splitlines() if not line.startswith("|"))


def studies_of(path: Path) -> list[dict]:
    """The records of studies that a page names, and of those on the pages that it links to."""
    pages = [path, *((path.parent / link).resolve() for link in re.findall(r"\]\(([\w./-]+\.md)", path.read_text()))]
    files = set(re.findall(r"benchmarks/results/[\w.-]+\.json", path.read_text()))
    files.update(file for page in pages for file in re.findall(r"<!-- study: ([^\s,]+)", page.read_text()))
    records = [json.loads((ROOT / file).read_text()) for file in sorted(files)]
    return [record for record in records if "contestants" in record]


def differences(record: dict) -> list[tuple[float, float]]:
    """Means and standard deviations of the differences between any two of a study, seed by seed."""
    of_best = [
        {t["seed"]: t["validation_loss"] for t in record["trials"] if (t["contestant"], t["lr"]) == key}
        for key in [(row["name"], row["lr"]) for row in record["contestants"] if "failed" not in row]
    ]
    pairs = [[one[seed] - other[seed] for seed in one if seed in other] for one, other in combinations(of_best, 2)]
    return [(abs(fmean(apart)), stdev(apart)) for apart in pairs if len(apart) > 1]


DIFFERENCE = re.compile(r"(?<![\d.])(\d\.\d+) ± (\d\.\d+)")
WITH_DIFFERENCES = [
    path for path in PAGES if path.name not in ("theory.md", "log.md") and DIFFERENCE.search(prose(path.read_text()))
]


def without_runs(text: str, known: list[tuple[float, float]]) -> list[str]:
    """The differences in a text that no two rows have, to the digits that are given."""

    def is_known(numbers: tuple[str, ...]) -> bool:
        return any(
            all(
                abs(float(digits) - value) <= 0.51 * 10.0 ** -len(digits[2:])
                for digits, value in zip(numbers, pair, strict=True)
            )
            for pair in known
        )

    return [" ± ".join(numbers) for numbers in DIFFERENCE.findall(text) if not is_known(numbers)]


@pytest.mark.parametrize("path", WITH_DIFFERENCES, ids=[str(path.relative_to(ROOT)) for path in WITH_DIFFERENCES])
def test_differences_in_prose_are_those_of_two_rows_of_a_study(path):
    """Of the page, or of one that it links to. The log is of its days, and theory.md has slopes."""
    known = [pair for record in studies_of(path) for pair in differences(record)]
    assert without_runs(prose(path.read_text()), known) == []


def test_a_difference_without_runs_behind_it_is_found():
    known = [(0.11842, 0.0263)]
    assert without_runs("by 0.118 ± 0.026, or 0.12 ± 0.03, 0.1184 ± 0.0263", known) == []
    assert without_runs("by 0.119 ± 0.026, 0.118 ± 0.027", known) == ["0.119 ± 0.026", "0.118 ± 0.027"]


def test_seconds_are_those_of_the_study_that_was_timed(tmp_path):
    tables, file = runpy.run_path(str(ROOT / "benchmarks/tables.py")), "benchmarks/results/peers-small-rank16-cpu.json"
    record = json.loads((ROOT / file).read_text())
    rows = [
        {"name": row["name"], "seconds_per_step": [0.5 + place, None], "optimizer_seconds_per_step": [0.125, None]}
        for place, row in enumerate(record["contestants"])
    ]
    rows = [row for row in rows if row["name"] != "adamw, beta2 0.99"]
    timed = tmp_path / "timed.json"
    timed.write_text(json.dumps({"contestants": rows, "trials": record["trials"]}))
    table = tables["rendered"](f"<!-- study: {file}, times of {timed} -->\n<!-- end -->").splitlines()
    heading = next(place for place, line in enumerate(table) if line.startswith("| optimizer |"))
    assert table[heading].endswith("| optimizer (ms/step) | training (s) |")
    assert [line.split("| ")[-2:] for line in table[heading + 2 :][:2]] == [["125.0 ", "150 |"], ["125.0 ", "450 |"]]
    seconds = {line.split(" | ")[0]: line.split("| ")[-1] for line in table[heading + 2 :]}
    assert seconds["| adamw, beta2 0.99"] == seconds["| adamw"] == "1350 |"


PLANNED = {"dtype": "bfloat16", "batch": 1, "seq": 1024, "checkpointing": True}


@pytest.mark.slow
def test_memory_beside_other_optimizers_is_what_is_planned():
    from ldadam import plan

    row = r"^\| (\w+)(?:, (int\d))? \|(?: (\d+))? \| ([\d.]+) \| ([\d.]+) \|$"
    rows = re.findall(row, (ROOT / "docs/results.md").read_text(), re.M)
    assert len(rows) == 13
    for optimizer, stored, rank, *totals in rows:
        options = {"rank": int(rank)} if rank else {}
        options |= {"error_dtype": stored} if stored else {}
        for in_backward, total in zip((False, True), totals, strict=True):
            planned = plan("7b", optimizer=optimizer, step_in_backward=in_backward, **options, **PLANNED)
            assert f"{planned.footprint.total / 2**30:.2f}" == total


@pytest.mark.slow
def test_what_fits_is_what_is_planned():
    from ldadam import plan

    rows = re.findall(
        r"^\| (\d+) \| (\w+).*? \| ([\d.]+), .*? \| ([\d.]+), .*? \|$", (ROOT / "docs/memory.md").read_text(), re.M
    )
    assert len(rows) == 7
    for rank, stored, *totals in rows:
        buffer = {"error_feedback": False} if stored == "none" else {"error_dtype": stored}
        for in_backward, total in zip((False, True), totals, strict=True):
            planned = plan("7b", rank=int(rank), step_in_backward=in_backward, **buffer, **PLANNED)
            assert f"{planned.footprint.total / 2**30:.2f}" == total

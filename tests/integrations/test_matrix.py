"""The matrix in docs/integrations/index.md: a test behind each cell, and the versions that are installed here."""

import re
from importlib.metadata import version
from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "integrations" / "index.md").read_text(encoding="utf-8")
MATRIX = PAGE[PAGE.index("## What is tested") :]
NUMBERED = dict(re.findall(r"^\[\^(\d+)\]: `(tests/\S+::\w+)`", MATRIX, flags=re.MULTILINE))
PACKAGES = {"Transformers": "transformers", "TRL, SFT": "trl", "TRL, DPO": "trl", "Accelerate": "accelerate"}
PACKAGES |= {"PEFT in the Trainer": "peft", "Lightning": "lightning"}
BY_HAND = {"Axolotl", "LLaMA-Factory", "torchtitan"}


def rows() -> dict[str, list[str]]:
    """By framework, whose name is the link to its page: version and cells."""
    lines = [line for line in MATRIX.splitlines() if line.startswith("|")][2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {name[1:].partition("]")[0]: rest for name, *rest in cells}


def test_each_cell_names_a_test_or_says_why_there_is_none():
    """Whether the tests exist is asked of every page, in tests/test_docs.py."""
    cited = set()
    for name, (_, *cells) in rows().items():
        for cell in cells:
            numbers = re.findall(r"\[\^(\d+)\]", cell)
            assert numbers or (name in BY_HAND and cell in ("by hand", "not run")), (name, cell)
            cited.update(numbers)
    assert cited == NUMBERED.keys()


def test_the_versions_are_those_that_these_tests_run_with():
    assert rows().keys() == PACKAGES.keys() | BY_HAND
    assert {name: rows()[name][0] for name in PACKAGES} == {name: version(of) for name, of in PACKAGES.items()}

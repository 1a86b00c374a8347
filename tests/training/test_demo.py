"""The demo compares like with like and leaves a table that can be quoted."""

import dataclasses
import json

import pytest
from tiny_runs import TINY, ldadam, numbers

from ldadam.training.presets import PRESETS


@pytest.fixture
def tiny_demo(monkeypatch):
    names = {field.name for field in dataclasses.fields(PRESETS["demo"])}
    changes = {name: value for name, value in TINY.items() if name in names}
    changes |= {"rank": 4, "steps": 6, "lr": {"ldadamw": 2e-3, "adamw": 1e-3}}
    monkeypatch.setattr("ldadam.training.packing.TOKENIZER_CHARACTERS", 100_000)
    monkeypatch.setitem(PRESETS, "demo", dataclasses.replace(PRESETS["demo"], **changes))


@pytest.mark.slow
def test_the_demo_compares_both_optimizers_on_the_same_batches(tmp_path, tiny_demo, capsys):
    assert ldadam("demo", "--out", tmp_path, "--threads", "1") == 0
    printed = capsys.readouterr().out
    result = json.loads((tmp_path / "demo.json").read_text())
    assert [run["run"] for run in result["runs"]] == ["LDAdamW", "AdamW"]
    assert [run["lr"] for run in result["runs"]] == [2e-3, 1e-3]
    assert numbers(tmp_path / "ldadamw")[0]["loss"] == numbers(tmp_path / "adamw")[0]["loss"]
    table = (tmp_path / "demo.md").read_text()
    assert f"{result['runs'][0]['final_validation_loss']:.4f}" in table
    assert (tmp_path / "report.html").exists()
    assert "report.png" in printed
    # A second demo in the same folder replaces the first one, even a broken one, and gives the same numbers.
    before = numbers(tmp_path / "ldadamw")
    (tmp_path / "adamw/run.json").unlink()
    assert ldadam("demo", "--out", tmp_path, "--threads", "1") == 0
    assert numbers(tmp_path / "ldadamw") == before


def test_the_demo_touches_no_other_folder(tmp_path, tiny_demo, capsys):
    (tmp_path / "adamw").mkdir()
    (tmp_path / "adamw/precious").write_text("x")
    assert ldadam("demo", "--out", tmp_path) == 2
    assert "is no demo's: delete it, or choose another --out" in capsys.readouterr().err
    assert (tmp_path / "adamw/precious").exists()

"""The demo compares like with like and leaves a table that can be quoted."""

import dataclasses
import json

import pytest
from tiny_runs import TINY, ldadam, numbers

from ldadam.training import demo
from ldadam.training.presets import PRESETS


@pytest.fixture
def tiny_demo(monkeypatch):
    names = {field.name for field in dataclasses.fields(PRESETS["demo"])}
    changes = {name: value for name, value in TINY.items() if name in names}
    changes |= {"rank": 4, "steps": 6, "lr": {"ldadamw": 2e-3, "adamw": 1e-3}}
    monkeypatch.setattr("ldadam.training.packing.TOKENIZER_CHARACTERS", 100_000)
    monkeypatch.setitem(PRESETS, "demo", dataclasses.replace(PRESETS["demo"], **changes))


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


def test_the_sweep_gives_both_optimizers_the_same_trials(tmp_path, tiny_demo, monkeypatch):
    monkeypatch.setattr(demo, "SWEEP_RATES", (1e-3, 4e-3))
    assert ldadam("demo", "--sweep", "--out", tmp_path, "--threads", "1") == 0
    result = json.loads((tmp_path / "demo_lr_sweep.json").read_text())
    assert [(t["optimizer"], t["lr"]) for t in result["trials"]] == [
        (optimizer, lr) for optimizer in ("ldadamw", "adamw") for lr in (1e-3, 4e-3)
    ]
    for optimizer, best in result["best"].items():
        trials = {t["lr"]: t["final_validation_loss"] for t in result["trials"] if t["optimizer"] == optimizer}
        assert trials[best] == min(trials.values())
    # Run again, it finds the trials finished.
    (tmp_path / "demo_lr_sweep.json").unlink()
    assert ldadam("demo", "--sweep", "--out", tmp_path, "--threads", "1") == 0
    assert json.loads((tmp_path / "demo_lr_sweep.json").read_text())["trials"] == result["trials"]


def test_a_diverged_trial_never_wins():
    trials = [
        {"optimizer": "adamw", "lr": 1e-3, "final_validation_loss": 5.0},
        {"optimizer": "adamw", "lr": 1.0, "final_validation_loss": float("nan")},
    ]
    assert demo._best(trials, "adamw") == 1e-3

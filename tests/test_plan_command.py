"""`ldadam plan` as a command: its tables, its files, and what it refuses."""

import json
import subprocess
import sys

import pytest

from ldadam.cli import run


def run_plan(*arguments):
    return run(["plan", "--device", "cpu", *map(str, arguments)])


def test_the_table_says_what_fits(capsys):
    options = ("--rank", "32", "--batch", "2", "--seq", "64", "--checkpointing", "--step-in-backward")
    assert run_plan("--model", "demo", *options) == 0
    printed = capsys.readouterr().out
    assert "demo: 1.85 M weights in bfloat16, rank 32, error buffer in bfloat16, 2 x 64 tokens" in printed
    for row in ("MiB", "weights", "largest gradient", "low-rank moments", "dense moments", "error buffer", "total"):
        assert f"│ {row} " in printed or f"┃ {row} " in printed
    for peer in ("adamw8bit", "adamw4bit", "galore", "apollo"):
        assert peer in printed
    assert "ldadamw fits on a card of 8 GB" in printed
    assert "gathered" not in printed and "collectives" not in printed


def test_devices_get_a_table_of_collectives(capsys):
    assert run_plan("--model", "60m", "--rank", "0.25", "--devices", "8", "--sharding", "compressed") == 0
    printed = capsys.readouterr().out
    assert "on each of 8 devices (compressed)" in " ".join(printed.split())
    assert "dense gradients" in printed and "A Y" in printed and "all-reduce" in printed
    assert "Each device sends" in printed


def test_what_is_not_estimated_is_said(capsys):
    assert run_plan("--model", "64x96:3", "--rank", "8") == 0
    assert "Activations: not estimated (give --batch and --seq)" in capsys.readouterr().out
    assert run_plan("--model", "64x96:3", "--rank", "8", "--batch", "1", "--seq", "8") == 0
    assert "Activations: not estimated (known for Llama-like models only)" in capsys.readouterr().out


def test_the_files_have_the_numbers_and_the_picture(tmp_path, capsys):
    numbers, picture = tmp_path / "new" / "plan.json", tmp_path / "plan.png"
    assert run_plan("--model", "7b", "--rank", "16", "--json", numbers, "--picture", picture) == 0
    record = json.loads(numbers.read_text())
    assert {"command", "commit", "torch"} <= record.keys()
    assert record["num_weights"] == 6_738_415_616
    assert [row["optimizer"] for row in record["footprints"]][:2] == ["ldadamw", "adamw"]
    ours = record["footprints"][0]
    assert ours["state_total"] == sum(ours["state"].values())
    assert ours["total"] >= ours["weights"] + ours["gradients"] + ours["state_total"]
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_the_bars_of_the_picture_end_at_the_total():
    from ldadam import plan
    from ldadam.planner.picture import draw

    for options in ({}, {"batch": 1, "seq": 64}, {"batch": 1, "seq": 64, "step_in_backward": True}):
        planned = plan("demo", rank=16, device="cpu", **options)
        (ax,) = draw(planned).axes
        for row, footprint in enumerate(planned.footprints):
            ends = [bar.get_x() + bar.get_width() for bar in ax.patches if round(bar.get_y() + 0.4) == row]
            assert max(ends) == pytest.approx(footprint.total / 2**20)


REFUSED = {
    "unknown model '6b': expected demo": ("--model", "6b"),
    "--rank must be a whole number, or a fraction": ("--rank", "four"),
    "rank must be a positive int": ("--rank", "0"),
    "dtype must be a floating-point dtype": ("--dtype", "int8"),
    "error_dtype must be None": ("--error-dtype", "int5"),
    "batch and seq are given together": ("--batch", "2"),
    "is a folder: name a file in it": ("--json", "."),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_input_is_one_sentence_and_exit_code_2(sentence, capsys):
    assert run_plan("--model", "demo", *REFUSED[sentence]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert len(errors.splitlines()) == 1


def test_help_does_not_load_torch():
    script = "import sys; from ldadam.cli import run; run(['plan', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert "--step-in-backward" in done.stdout
    assert done.stdout.rstrip().endswith("False")

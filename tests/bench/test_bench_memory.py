"""`ldadam bench memory`: real training steps in processes of their own, beside what was planned for them."""

import json
import math
import os
import signal

import pytest
import torch

from ldadam.bench.own_process import _outcome, in_own_process
from ldadam.bench.training_memory import find_cases
from ldadam.cli import run
from tolerances import TOLERANCES


def memory(*arguments):
    return run(["bench", "memory", "--device", "cpu", *map(str, arguments)])


@pytest.mark.slow
def test_a_run_has_the_planned_state_and_no_higher_peak(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    path = tmp_path / "memory.json"
    tiny = ("--model", "demo", "--rank", "32", "--seq", "64", "--steps", "2", "--checkpointing")
    assert memory(*tiny, "--optimizers", "ldadamw:in-backward,ldadamw", "--json", path) == 0
    record = json.loads(path.read_text())
    assert {"command", "commit", "torch", "ldadam", "hardware", "checkpointing"} <= record.keys()
    in_backward, ordinary = record["results"]
    assert (in_backward["step_in_backward"], ordinary["step_in_backward"]) == (True, False)
    assert (in_backward["error_dtype"], ordinary["rank"]) == ("int4", 32)
    for row in record["results"]:
        assert row["status"] == "ok"
        first, last = row["losses"]
        assert math.isfinite(first) and last < first
        assert row["state_bytes"] == row["planned_state_bytes"]
        assert row["planned_state_bytes"] < row["peak_bytes"] <= row["planned_bytes"] * (1 + TOLERANCES["planned peak"])
    table = capsys.readouterr().out
    assert "ldadamw, in backward" in table and "planned" in table


def killed():
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def raising(error):
    raise error


def test_a_process_that_is_killed_is_told_apart():
    assert in_own_process(killed)["status"].startswith("killed: ")


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (torch.cuda.OutOfMemoryError("tried to allocate\nmore"), "out of memory: tried to allocate"),
        (ImportError("pip install galore-torch"), "not installed: pip install galore-torch"),
        (ValueError(), "failed: ValueError: no message"),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_fails_is_told_apart(error, status):
    assert _outcome(raising, (error,)) == {"status": status}


def test_each_optimizer_is_run_at_the_ranks_and_dtypes_that_it_has():
    names = "ldadamw:in-backward,adamw,galore"
    cases = find_cases(model="1b,7b", rank="64,256", error_dtype="int8,int4", optimizers=names)
    of_7b = [(case.optimizer, case.rank, case.error_dtype, case.step_in_backward) for case in cases[len(cases) // 2 :]]
    assert of_7b == [
        ("ldadamw", 64, "int8", True),
        ("ldadamw", 64, "int4", True),
        ("ldadamw", 256, "int8", True),
        ("ldadamw", 256, "int4", True),
        ("adamw", None, None, False),
        ("galore", 64, None, False),
        ("galore", 256, None, False),
    ]


REFUSED = {
    "--model must be of demo, 20m, 60m": ("--model", "6b"),
    "--error-dtype must be of float64, float32": ("--error-dtype", "int5"),
    "--optimizers must be of ldadamw:in-backward, ldadamw, adamw": ("--optimizers", "adamw,sgd"),
    "with commas between; got 'nothing'": ("--optimizers", ","),
    "--rank 128 fits no matrix of demo: their longest shorter side is 128": ("--model", "demo", "--rank", "32,128"),
    "--rank must be a positive whole number": ("--rank", "0"),
    "--device must be cpu or cuda, got 'tpu'": ("--device", "tpu"),
    "--dtype must be one of float32, bfloat16": ("--dtype", "int8"),
    "--json must be a file": ("--json", "."),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_input_is_one_sentence_and_exit_code_2(sentence, capsys):
    assert memory(*REFUSED[sentence]) == 2
    assert sentence in capsys.readouterr().err

"""`ldadam bench step` as a command: its table and JSON, what it refuses, and what it goes on without."""

import json
import math
import sys

import pytest
import torch
from test_bench_parts import WRONG, spoil

from ldadam.backends.batched import TorchProducts
from ldadam.bench.subjects import _ENTRIES, find_entry
from ldadam.cli import run
from ldadam.peers import Weights

TINY = ("--model", "12x20:2,20x12:1", "--rank", "4", "--repeats", "2", "--threads", "1")


def bench(*arguments):
    return run(["bench", "step", *TINY, *map(str, arguments)])


def test_the_json_has_times_and_circumstances(tmp_path, capsys):
    path = tmp_path / "new" / "step.json"
    assert bench("--optimizers", "ldadamw,ldadamw:eager,adamw,adamw:foreach,adafactor,muon", "--json", path) == 0
    record = json.loads(path.read_text())
    assert {"command", "commit", "torch", "python", "ldadam", "device", "dtype", "ceilings"} <= record.keys()
    assert record["hardware"]["threads"] == 1
    (result,) = record["results"]
    assert result["shapes"][0] == {"shape": [12, 20], "count": 2, "low_rank": True}
    assert [each["backend"] for each in result["equality"]] == ["auto"]
    for row in result["optimizers"]:
        assert row["status"] == "ok"
        assert row["min_seconds"] <= row["median_seconds"] <= row["max_seconds"]
        assert [len(visit) for visit in row["samples"]] == [1, 1]
        assert row["ratio_to_adamw"] > 0 and row["extra_bytes"] is not None
        assert ("share_of_bandwidth" in row) == row["name"].startswith(("ldadamw", "adamw"))
    assert [row["ratio_to_adamw"] for row in result["optimizers"] if row["name"] == "adamw"] == [1.0]
    table = capsys.readouterr().out
    assert "rank 4" in table and "ldadamw:eager" in table and "equals the page" in table


def test_the_residual_has_a_speed_where_it_equals_the_page_with_it(monkeypatch, tmp_path, capsys):
    path = tmp_path / "step.json"
    assert bench("--optimizers", "adamw,ldadamw:residual", "--json", path) == 0
    (result,) = json.loads(path.read_text())["results"]
    assert [each["backend"] for each in result["equality"]] == ["residual"]
    see_grad = TorchProducts.see_grad
    monkeypatch.setattr(TorchProducts, "see_grad", lambda self, basis: [2 * part for part in see_grad(self, basis)])
    assert bench("--optimizers", "adamw,ldadamw:residual") == 1
    assert "ldadamw:residual does not equal the page" in capsys.readouterr().err


def test_a_kept_step_is_one_between_two_moves_of_the_subspace(tmp_path):
    path = tmp_path / "step.json"
    assert bench("--optimizers", "ldadamw,ldadamw:kept", "--json", path) == 0
    (result,) = json.loads(path.read_text())["results"]
    assert [each["backend"] for each in result["equality"]] == ["auto", "kept"]
    param = torch.nn.Parameter(torch.zeros(12, 16))
    stepper = find_entry("ldadamw:kept").build(Weights([param], []), 4)
    bases = []
    for seed in range(3):
        param.grad = torch.randn(12, 16, generator=torch.Generator().manual_seed(seed))
        stepper.step()
        bases.append(stepper.state[param]["basis"].clone())
    assert torch.equal(bases[0], bases[1]) and torch.equal(bases[1], bases[2])


def test_every_model_and_rank_is_timed_with_all_parameters(tmp_path):
    path = tmp_path / "step.json"
    arguments = ["bench", "step", "--model", "demo", "--rank", "2,4", "--repeats", "1", "--all-parameters"]
    assert run([*arguments, "--dtype", "bfloat16", "--optimizers", "ldadamw", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    assert record["dtype"] == "bfloat16"
    assert [(each["model"], each["rank"]) for each in record["results"]] == [("demo", 2), ("demo", 4)]
    assert all(each["optimizers"][0]["ratio_to_adamw"] is None for each in record["results"])


@pytest.mark.parametrize("kind", WRONG)
def test_a_backend_that_is_not_the_page_has_no_speed(kind, monkeypatch, tmp_path, capsys):
    spoil(monkeypatch, WRONG[kind])
    path = tmp_path / "step.json"
    assert bench("--optimizers", "adamw,ldadamw:batched", "--json", path) == 1
    printed = capsys.readouterr()
    assert "ldadamw:batched does not equal the page on shapes like those of 12x20:2,20x12:1 at rank 4" in printed.err
    assert "Traceback" not in printed.err
    assert "step ms" not in printed.out
    assert not path.exists()


@pytest.mark.parametrize("name", [name for name, entry in _ENTRIES.items() if entry.install])
def test_a_peer_that_is_not_installed_is_listed_and_the_others_go_on(name, monkeypatch, capsys):
    for module in ("torchao", "torchao.optim", "galore_torch", "apollo_torch", "pytorch_optimizer"):
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "ista_daslab_optimizers", None)
    for optimizer in ("Adafactor", "Muon"):
        monkeypatch.delattr(torch.optim, optimizer, raising=False)
    assert bench("--optimizers", f"{name},adamw") == 0
    printed = capsys.readouterr().out
    assert f"{name}: not installed: pip install {_ENTRIES[name].install}" in printed
    assert "│ adamw " in printed


def test_a_peer_that_fails_is_listed_and_the_others_go_on(capsys):
    names = "strange_optimizers:Failing,strange_optimizers:Missing,nowhere:Nothing,strange_optimizers:Spoiler,adamw"
    assert bench("--optimizers", names) == 0
    printed = capsys.readouterr().out
    assert "strange_optimizers:Failing: failed: ArithmeticError: no step today\n" in printed
    assert "strange_optimizers:Missing: failed: AttributeError" in printed
    assert "nowhere:Nothing: failed: ModuleNotFoundError" in printed
    assert "a line for each parameter" not in printed
    assert "│ strange_optimizers:Spoiler" in printed and "│ adamw " in printed


def test_a_backend_that_cannot_run_is_listed(monkeypatch, capsys):
    def fail(_):
        raise RuntimeError("no kernels here")

    monkeypatch.setattr("ldadam.backends.batched.step_", fail)
    assert bench("--optimizers", "ldadamw:batched,adamw") == 0
    assert "ldadamw:batched: failed: RuntimeError: no kernels here" in capsys.readouterr().out


REFUSED = {
    "unknown model '61m': expected demo, 20m, 60m": ("--model", "61m"),
    "unknown model '1024'": ("--model", "1024"),
    "--model is empty": ("--model", ","),
    "--model has a side or count of zero": ("--model", "8x0:2"),
    "unknown optimizer 'adamv': expected one of ldadamw, ldadamw:graph": ("--optimizers", "adamv"),
    "unknown optimizer 'ldadamw:fast'": ("--optimizers", "ldadamw:fast"),
    "--optimizers is empty": ("--optimizers", ""),
    "--optimizers names one twice": ("--optimizers", "adamw,adamw"),
    "--rank must be a positive whole number": ("--rank", "four"),
    "--rank 12 fits no matrix of 12x20:2,20x12:1: their longest shorter side is 12": ("--rank", "4,12"),
    "--device must be cpu or cuda, got 'tpu'": ("--device", "tpu"),
    "--dtype must be one of float32, bfloat16, got 'float8'": ("--dtype", "float8"),
    "a CUDA graph needs --device cuda": ("--graph",),
    "--json must be a file": ("--json", "."),
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_bad_input_is_one_sentence_and_exit_code_2(sentence, capsys):
    assert bench(*REFUSED[sentence]) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert len([line for line in errors.splitlines() if line.startswith("ldadam: ")]) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_that_is_missing_is_one_sentence(capsys):
    assert bench("--device", "cuda") == 2
    assert "torch sees no CUDA device: use --device cpu" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
def test_a_gpu_is_timed_with_a_graph(tmp_path, monkeypatch):
    monkeypatch.undo()
    path = tmp_path / "step.json"
    shapes = ("--model", "256x512:4,512x256:2", "--rank", "16")
    assert bench(*shapes, "--device", "cuda", "--graph", "--optimizers", "ldadamw,adamw", "--json", path) == 0
    (result,) = json.loads(path.read_text())["results"]
    assert [row["status"] for row in result["optimizers"]] == ["ok"] * 3
    assert all(math.isfinite(row["median_seconds"]) for row in result["optimizers"])

"""`ldadam pretrain --step-in-backward` is the same run with fewer gradients."""

import json
import shutil

import pytest
from safetensors.torch import load_file
from tiny_runs import config, ldadam, numbers, options

from ldadam.training.errors import UsageError
from ldadam.training.metrics import read_metrics
from tolerances import TOLERANCES


@pytest.fixture(scope="module")
def in_backward(tmp_path_factory, corpus):
    run = tmp_path_factory.mktemp("in_backward") / "run"
    assert ldadam(*options(run, corpus, step_in_backward=True)) == 0
    return run


def test_the_run_is_that_without_it(in_backward, finished):
    """Losses, learning rates and weights to the bit; what is measured of the subspace as well."""
    assert numbers(in_backward) == numbers(finished["ldadamw"])
    weights = (load_file(run / "checkpoint-12/model.safetensors") for run in (in_backward, finished["ldadamw"]))
    assert all(one.equal(other) for one, other in zip(*(one.values() for one in weights), strict=True))


def test_no_gradient_is_left_and_the_time_of_the_steps_is_measured(in_backward):
    assert json.loads((in_backward / "memory.json").read_text())["counted"]["gradients"] == 0
    records = read_metrics(in_backward / "metrics.jsonl")
    assert all(0 < record["optimizer_seconds"] <= record["step_seconds"] for record in records)


def test_a_resumed_run_goes_on_in_backward(tmp_path, in_backward):
    run = shutil.copytree(in_backward, tmp_path / "run")
    shutil.rmtree(run / "checkpoint-12")
    assert ldadam("pretrain", "--resume", "--out", run) == 0
    assert numbers(run) == numbers(in_backward)
    assert json.loads((run / "memory.json").read_text())["counted"]["gradients"] == 0


def test_accumulation_gives_the_same_curve(tmp_path, corpus):
    shared = {"batch_size": 2, "grad_accum": 2}
    assert ldadam(*options(tmp_path / "ordinary", corpus, **shared)) == 0
    assert ldadam(*options(tmp_path / "in_backward", corpus, step_in_backward=True, **shared)) == 0
    ordinary, accumulated = (numbers(tmp_path / name) for name in ("ordinary", "in_backward"))
    for name, count, kind in (("loss", 12, "learning curve"), ("val_loss", 3, "learning curve"), ("captured", 5, None)):
        pairs = [(one[name], other[name]) for one, other in zip(accumulated, ordinary, strict=True) if name in other]
        assert len(pairs) == count
        assert all(one == pytest.approx(other, rel=TOLERANCES[f"{kind or name}, other order"]) for one, other in pairs)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"max_grad_norm": 1.0}, "max_grad_norm=1.0 clips by the norm of all gradients"),
        ({"optimizer": "adamw"}, "step_in_backward has no effect on adamw"),
    ],
)
def test_what_it_cannot_do_is_one_sentence(tmp_path, changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        config(tmp_path / "run", tmp_path / "x.jsonl", step_in_backward=True, **changes)

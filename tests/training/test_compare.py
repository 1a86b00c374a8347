"""A study: every optimizer on the same work, its learning rate chosen by one seed, its failures told."""

import json
import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from tiny_runs import TINY, ldadam, numbers, settings, wait_for_lines

from ldadam.comparison import pictures
from ldadam.comparison.arguments import study_from
from ldadam.comparison.pictures import draw_study
from ldadam.comparison.results import Results, known_outcomes, table_of
from ldadam.comparison.run_study import check_study, run_study
from ldadam.comparison.study import Contestant, Study, Trial, as_options, command_line
from ldadam.comparison.trials import finished_run
from ldadam.peers import PEERS
from ldadam.planner.models import find_source
from ldadam.planner.planning import Settings as PlanSettings
from ldadam.planner.planning import find_run, footprint_without_peak
from ldadam.recipes import RECIPES
from ldadam.recipes.equal_seconds import equal_seconds_gutenberg_rank80_cpu
from ldadam.recipes.peers import peers_demo_rank32_cpu, peers_gutenberg_rank80_cpu, peers_small_rank16_cpu
from ldadam.training.errors import Interrupted, UsageError
from ldadam.training.metrics import read_metrics
from ldadam.training.run_config import fields_of

ROOT = Path(__file__).parents[2]


def tiny_study(corpus, *contestants, seeds=(0,), **changes):
    """A study of runs of four steps."""
    shared = {**TINY, "corpus": str(corpus), "steps": 4, "eval_every": 2, **changes}
    return Study("tiny", "tiny runs", "pretrain", shared, contestants, seeds)


FAILING = Contestant("strange_optimizers:Failing", (1e-3,), {"rank": 4}, "failing")


def outcome(loss, **scores):
    known = {"seconds": 1.0, "seconds_per_step": 0.25, "optimizer_seconds_per_step": 0.1, "optimizer_bytes": 8}
    return {"validation_loss": loss, "scores": scores, **known}


@pytest.mark.slow
def test_a_study_goes_on_after_a_failure_and_finds_finished_runs(tmp_path, corpus, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", "tests/bench")
    study = tiny_study(corpus, FAILING, Contestant("adamw", (2e-3,)))
    record = run_study(study, tmp_path)
    failing, adamw = record["contestants"]
    assert "no step today" in failing["failed"]
    (trial,) = record["trials"]
    assert adamw["validation_loss"] == [trial["validation_loss"], None]
    last = numbers(tmp_path / "adamw-lr0.002-seed0")[-1]
    assert trial["validation_loss"] == last["val_loss"] and trial["validation"][-1][0] == 4
    assert trial["optimizer_bytes"] > 0
    steps = read_metrics(tmp_path / "adamw-lr0.002-seed0" / "metrics.jsonl")[1:]
    assert trial["seconds_per_step"] == pytest.approx(sum(step["step_seconds"] for step in steps) / 3)
    assert json.loads((tmp_path / "study.json").read_text()) == record
    assert f"| {last['val_loss']:.4f} |" in (tmp_path / "study.md").read_text()
    assert (tmp_path / "study.png").stat().st_size > 10_000
    # The recorded command makes the run again, whatever defaults become.
    monkeypatch.chdir(tmp_path.parent)
    assert "--dense-lr-scale 16.0" in trial["command"]
    assert ldadam(*shlex.split(trial["command"])[1:], "--out", tmp_path / "again") == 0
    assert numbers(tmp_path / "again") == numbers(tmp_path / "adamw-lr0.002-seed0")
    # What has ended is not run again, and is not mistaken for a run with other settings, named or left out, or for one
    # on other data.
    ADAMW = Contestant("adamw", (2e-3,))
    with pytest.raises(UsageError, match="holds the study tiny with failing: name its optimizers too"):
        run_study(tiny_study(corpus, ADAMW), tmp_path)
    (tmp_path / "study.json").unlink()
    assert run_study(tiny_study(corpus, ADAMW), tmp_path)["trials"][0]["seconds"] == trial["seconds"]
    with pytest.raises(UsageError, match="holds a run with steps=4, and now it would be 5"):
        run_study(tiny_study(corpus, ADAMW, steps=5), tmp_path)
    # Runs that are older than a setting did as it was then, which need not be today's default.
    config = tmp_path / "adamw-lr0.002-seed0" / "config.yaml"
    as_it_was = config.read_text()
    assert "dense_lr_scale: 16.0" in as_it_was
    config.write_text(as_it_was.replace("dense_lr_scale: 16.0\n", ""))
    with pytest.raises(UsageError, match=r"holds a run with dense_lr_scale=1.0, and now it would be 16.0"):
        run_study(tiny_study(corpus, ADAMW), tmp_path)
    study = tiny_study(corpus, Contestant("adamw", (2e-3,), {"dense_lr_scale": 1.0}))
    assert run_study(study, tmp_path)["trials"][0]["seconds"] == trial["seconds"]
    config.write_text(as_it_was)
    without = tiny_study(corpus, ADAMW, eval_every=None)
    with pytest.raises(UsageError, match="holds a run with eval_every=2, and now it would be 50"):
        run_study(without, tmp_path)
    results = Results(study)
    results.add(Trial(ADAMW, 2e-3, 0), trial)
    other = {**trial, "fingerprint": "another"}
    with pytest.raises(UsageError, match="saw different data"):
        results.add(Trial(ADAMW, 4e-3, 0), other)


@pytest.mark.slow
def test_a_study_takes_in_the_runs_of_an_earlier_record(tmp_path, corpus, capsys):
    adamw = Contestant("adamw", (2e-3,))
    earlier = run_study(tiny_study(corpus, adamw), tmp_path / "earlier")
    study = tiny_study(corpus, Contestant("adamw", (1e-3, 2e-3)))
    record = run_study(study, tmp_path / "later", known=known_outcomes(study, earlier, processes=1))
    assert sorted(trial["lr"] for trial in record["trials"]) == [1e-3, 2e-3]
    assert earlier["trials"][0] in record["trials"]
    assert [folder.name for folder in (tmp_path / "later").glob("adamw-*") if folder.is_dir()] == [
        "adamw-lr0.001-seed0"
    ]
    # Runs with other settings are other runs.
    with pytest.raises(UsageError, match="holds no run of tiny with the settings of now"):
        known_outcomes(tiny_study(corpus, adamw, steps=5), earlier, processes=1)
    assert known_outcomes(tiny_study(corpus, adamw, threads=1, save_every=4), earlier, processes=1)
    other = tmp_path / "earlier/study.json"
    assert ldadam("run", "peers-small-rank16-cpu", "--known", other, "--dry-run") == 2
    assert "holds the study tiny, and this is peers-small-rank16-cpu" in capsys.readouterr().err
    broken = tmp_path / "broken.json"
    for text in ("{", "[]"):
        broken.write_text(text)
        assert ldadam("run", "peers-small-rank16-cpu", "--known", broken, "--out", tmp_path / "none") == 2
        assert f"--known must be the study.json of a study, and {broken} is not" in capsys.readouterr().err
    assert ldadam("run", "peers-small-rank16-cpu", "--known", tmp_path / "nowhere") == 2
    assert not (tmp_path / "none").exists()


def test_runs_with_another_version_of_a_package_are_other_runs(corpus, monkeypatch):
    galore = Contestant("galore", (2e-3,), {"rank": 4})
    study = tiny_study(corpus, galore)
    results = Results(study)
    results.outcomes[study.sweep()[0]] = {**outcome(2.0), "optimizer_package": "galore_torch 1.0"}
    record = results.record()
    for installed in ("1.0", "1.1", None):
        monkeypatch.setattr("ldadam.provenance.version", lambda package, installed=installed: installed)
        if installed == "1.1":
            with pytest.raises(UsageError, match="holds no run of tiny"):
                known_outcomes(study, record, processes=1)
        else:
            assert known_outcomes(study, record, processes=1)


PUBLISHED = (
    "peers-demo-rank32-cpu",
    "peers-small-rank16-cpu",
    "peers-gutenberg-rank80-cpu",
    "equal-seconds-gutenberg-rank80-cpu",
    "dense-rates-small-rank16-cpu",
    "dense-rates-gutenberg-rank80-cpu",
)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_record_is_of_the_recipe_as_it_is(name, capsys):
    """Nothing of the sweep is left to be made."""
    record = ROOT / f"benchmarks/results/{name}.json"
    assert ldadam("run", name, "--known", record, "--dry-run") == 0
    out, err = capsys.readouterr()
    assert [line for line in out.splitlines() if not line.startswith("#")] == [] and err == ""
    (study,) = RECIPES[name]()
    results = Results(study)
    for trial, known in known_outcomes(study, json.loads(record.read_text()), processes=1).items():
        results.add(trial, known)


def test_a_study_that_is_stopped_leaves_the_record_of_what_has_ended(tmp_path, corpus, monkeypatch):
    study = tiny_study(corpus, Contestant("adamw", (2e-3, 1e-3)), seeds=(0, 1))
    ended = {**outcome(2.0), "fingerprint": "of the data", "validation": [[4, 1.0, 2.0]]}
    known = {trial: {**ended, "fingerprint": str(trial.seed)} for trial in study.possible() if trial.lr == 2e-3}
    monkeypatch.setattr("ldadam.comparison.run_study.run_trial", lambda *_, **__: os.kill(os.getpid(), signal.SIGTERM))
    with pytest.raises(Interrupted, match="the same command goes on"):
        run_study(study, tmp_path, known=known)
    record = json.loads((tmp_path / "study.json").read_text())
    assert [(trial["lr"], trial["seed"]) for trial in record["trials"]] == [(2e-3, 0), (2e-3, 1)]
    assert record["contestants"][0]["lrs"] == {"0.002": "ended", "0.001": "not run"}


def test_what_is_not_installed_is_said_before_the_first_run(monkeypatch, capsys):
    monkeypatch.setattr("ldadam.training.optimizers.find_spec", lambda name: None if name == "torchao" else object())
    arguments = ("--task", "pretrain:demo", "--optimizers", "adamw,adamw8bit,muon", "--lrs", "1e-3", "--dry-run")
    assert ldadam("compare", *arguments) == 0
    assert capsys.readouterr().err == "ldadam: adamw8bit will fail: it needs torchao, which is not installed\n"


@pytest.mark.slow
def test_the_best_learning_rate_meets_the_other_seeds(tmp_path, corpus):
    study = tiny_study(corpus, Contestant("ldadamw", (1e-6, 1e-2), {"rank": 4}), seeds=(0, 1))
    record = run_study(study, tmp_path)
    (row,) = record["contestants"]
    assert row["lr"] == 1e-2 and row["num_runs"] == 2
    of_best = [trial["validation_loss"] for trial in record["trials"] if trial["lr"] == 1e-2]
    assert row["validation_loss"][0] == pytest.approx(sum(of_best) / 2)
    assert len(record["trials"]) == 3
    assert [trial["seed"] for trial in record["trials"]] == [0, 0, 1]


def test_a_run_that_was_stopped_is_not_finished(tmp_path, corpus):
    contestant = Contestant("adamw", (2e-3,))
    study, folder = tiny_study(corpus, contestant), tmp_path / "adamw-lr0.002-seed0"
    trial = Trial(contestant, 2e-3, 0)
    assert finished_run(study, trial, folder) is None
    assert ldadam("pretrain", *as_options({**study.settings_of(trial), "out": str(folder)})) == 0
    assert finished_run(study, trial, folder) is not None
    metrics = folder / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:-1]))
    assert finished_run(study, trial, folder) is None


def test_the_score_decides_before_the_loss_and_what_diverged_never_wins():
    contestant = Contestant("adamw", (1e-4, 1e-3, 1e-2))
    results = Results(Study("s", "", "finetune", {"task": "trec", "model": "minilm"}, (contestant,)))
    assert results.best_lr(contestant) is None
    results.outcomes[Trial(contestant, 1e-2, 0)] = outcome(float("nan"), accuracy=0.9)
    assert results.best_lr(contestant) is None
    assert results.record()["contestants"][0]["failed"] == "every run diverged"
    results.outcomes[Trial(contestant, 1e-4, 0)] = outcome(0.3, accuracy=0.7)
    results.outcomes[Trial(contestant, 1e-3, 0)] = outcome(0.4, accuracy=0.8)
    assert results.best_lr(contestant) == 1e-3
    results.outcomes[Trial(contestant, 1e-4, 0)] = outcome(0.3, accuracy=0.8)
    assert results.best_lr(contestant) == 1e-4


def test_a_table_has_mean_and_deviation_over_seeds():
    contestant = Contestant("adamw", (1e-3,))
    results = Results(Study("s", "", "pretrain", {}, (contestant,), (0, 1)))
    for seed, loss in ((0, 2.0), (1, 4.0)):
        results.outcomes[Trial(contestant, 1e-3, seed)] = outcome(loss)
    _, ((name, lr, _, num_runs, loss, *_),) = table_of(results.record())
    assert (name, lr, num_runs, loss) == ("adamw", "0.001", "2", "3.0000 ± 1.4142")


def test_differences_are_taken_seed_by_seed():
    first, other = Contestant("ldadamw", (1e-3,)), Contestant("adamw", (1e-3, 2e-3))
    results = Results(Study("s", "", "pretrain", {}, (first, other), (0, 1)))
    losses = {(first, 1e-3): (2.0, 4.0), (other, 1e-3): (9.0,), (other, 2e-3): (2.5, 4.7)}
    for (contestant, lr), of_seeds in losses.items():
        for seed, loss in enumerate(of_seeds):
            results.outcomes[Trial(contestant, lr, seed)] = outcome(loss)
    assert results.differences(first) == []
    assert results.differences(other) == pytest.approx([0.5, 0.7])
    headings, (_, row) = table_of(results.record())
    assert row[headings.index("loss against the first, by seed")] == "+0.6000 ± 0.1414"


@pytest.mark.slow
def test_runs_of_unequal_steps_are_of_one_study_if_they_are_measured_on_the_same_text(corpus, tmp_path):
    longer = Contestant("adamw", (1e-3,), {"steps": 5}, "longer")
    study = tiny_study(corpus, Contestant("adamw", (1e-3,)), longer)
    record = run_study(study, tmp_path)
    assert [(row["name"], row["num_runs"]) for row in record["contestants"]] == [("adamw", 1), ("longer", 1)]
    first, second = record["trials"]
    assert (first["steps"], second["steps"]) == (4, 5)
    assert first["fingerprint"] != second["fingerprint"]
    assert first["validation_fingerprint"] == second["validation_fingerprint"]
    results = Results(study)
    results.add(Trial(study.contestants[0], 1e-3, 0), first)
    with pytest.raises(UsageError, match="saw different data"):
        results.add(Trial(longer, 1e-3, 0), {**second, "validation_fingerprint": "another"})
    with pytest.raises(UsageError, match="saw different data"):
        results.add(Trial(longer, 1e-3, 0), {**second, "validation_fingerprint": None})


def test_steps_are_shown_where_optimizers_take_unequally_many():
    first, other = Contestant("ldadamw", (1e-3,)), Contestant("adamw", (1e-3,), {"steps": 7})
    results = Results(Study("s", "", "pretrain", {"steps": 5}, (first, other), (0,)))
    results.outcomes = {Trial(one, 1e-3, 0): outcome(2.0) for one in (first, other)}
    headings, rows = table_of(results.record())
    assert headings[:3] == ["optimizer", "steps", "best lr"]
    assert [row[:3] for row in rows] == [["ldadamw", "5", "0.001"], ["adamw", "7", "0.001"]]
    assert {len(row) for row in rows} == {len(headings)}


def test_a_diverged_seed_is_nan_and_not_the_end(tmp_path):
    contestant = Contestant("adamw", (1e-3,))
    results = Results(Study("s", "", "pretrain", {}, (contestant,), (0, 1)))
    results.outcomes[Trial(contestant, 1e-3, 0)] = outcome(2.0)
    results.outcomes[Trial(contestant, 1e-3, 1)] = outcome(float("nan"))
    _, ((_, _, _, num_runs, loss, *_),) = table_of(results.record())
    assert (num_runs, loss) == ("2", "nan ± nan")


def test_a_study_of_which_every_run_diverged_has_a_picture(tmp_path):
    contestant = Contestant("adamw", (1e-3,))
    results = Results(Study("s", "", "pretrain", {}, (contestant,)))
    results.outcomes[Trial(contestant, 1e-3, 0)] = {**outcome(float("inf")), "validation": [[1, 1.0, float("inf")]]}
    draw_study(results.record(), tmp_path / "study.png")
    assert (tmp_path / "study.png").exists()


def test_a_picture_is_of_the_seeds_that_all_have_and_of_their_mean():
    first, other = Contestant("ldadamw", (1e-3,)), Contestant("adamw", (1e-3,))
    results = Results(Study("s", "", "pretrain", {}, (first, other), (0, 1, 2)))
    for contestant, losses in {first: (2.0, 4.0, 9.0), other: (3.0, 6.0)}.items():
        for seed, loss in enumerate(losses):
            way = {"validation": [[1, 10.0, 2 * loss], [2, 20.0, loss]]}
            results.outcomes[Trial(contestant, 1e-3, seed)] = {**outcome(loss), **way}
    record = results.record()
    runs = [pictures._of_best(record, row) for row in record["contestants"]]
    assert pictures._common_seeds(runs) == {0, 1}
    ways = [pictures._mean_way([of_row[seed] for seed in (0, 1)]) for of_row in runs]
    assert ways == [[[1, 10.0, 6.0], [2, 20.0, 3.0]], [[1, 10.0, 9.0], [2, 20.0, 4.5]]]
    assert pictures._differences(runs, {0, 1}) == [[0.0, 0.0], [1.0, 2.0]]


def test_many_optimizers_are_drawn_by_their_differences(tmp_path):
    names = [f"number {place}" for place in range(pictures.MANY + 2)]
    figure = pictures._figure_of_differences([{"name": name} for name in names], [[0.1 * n] for n in range(len(names))])
    (ax,) = figure.axes
    assert [label.get_text() for label in ax.get_yticklabels()] == names
    contestants = [Contestant("adamw", (1e-3,), name=name) for name in names]
    results = Results(Study("s", "", "pretrain", {}, tuple(contestants)))
    for place, contestant in enumerate(contestants):
        results.outcomes[Trial(contestant, 1e-3, 0)] = {**outcome(float("inf") if place == 3 else 2.0 + place)}
    draw_study(results.record(), tmp_path / "study.png")
    assert (tmp_path / "study.png").stat().st_size > 10_000


def test_a_state_beside_which_the_others_would_lie_on_top_of_each_other_is_named_and_not_drawn():
    rows = [
        {"name": name, "optimizer_bytes": [size * 2**20]} for name, size in {"a": 14.0, "b": 0.074, "c": 10.0}.items()
    ]
    ways = [[[1, 1.0, loss]] for loss in (3.0, 4.0, 2.0)]
    ax = Figure().subplots()
    pictures._draw_ends(ax, rows, ways, [0.1, 0.1, 0.1])
    assert ax.get_xlabel() == "optimizer state (MiB), not drawn: b at 0.074"
    assert ax.get_xscale() == "linear" and ax.get_xlim()[0] > 9


def test_only_what_nothing_else_beats_in_both_is_undominated():
    points = [(1.0, 5.0), (2.0, 4.0), (2.5, 4.0), (3.0, 3.0), (3.5, 6.0)]
    sizes, ends = zip(*points, strict=True)
    assert [p for p in points if pictures._is_undominated(*p, sizes, ends)] == [(1.0, 5.0), (2.0, 4.0), (3.0, 3.0)]


def test_what_has_not_run_yet_is_not_said_to_have_failed():
    contestant = Contestant("adamw", (1e-3, 2e-3, 3e-3))
    results = Results(Study("s", "", "pretrain", {}, (contestant,)))
    assert results.record()["contestants"][0]["failed"] == "not run yet"
    results.outcomes[Trial(contestant, 1e-3, 0)] = outcome(2.0)
    results.failures[Trial(contestant, 2e-3, 0)] = "killed by SIGKILL"
    _, ((_, lr, tried, *_),) = table_of(results.record())
    assert (lr, tried) == ("0.001", "0.001, 0.002 (failed), 0.003 (not run)")


def test_settings_become_the_options_that_they_came_from(tmp_path, corpus):
    given = settings(tmp_path, corpus, report=False, rho=0.5)
    options = as_options(given)
    assert options.count("--no-report") == 1 and options[options.index("--rho") + 1] == "0.5"
    assert as_options({"threads": None}) == []
    study = Study("s", "", "pretrain", {"preset": "demo"}, (Contestant("adamw", (1e-3,)),))
    line = command_line(study, study.settings_of(study.sweep()[0]), out="x", processes=2)
    expected = "torchrun --nproc-per-node 2 -m ldadam pretrain --preset demo --optimizer adamw --lr 0.001 --seed 0"
    assert line == f"{expected} --no-report --out x"


def test_a_study_from_the_command_line():
    study = study_from("pretrain:demo", "ldadamw, galore", lrs=None, num_seeds=2, settings=["steps=5"], threads=1)
    ldadamw, galore = study.contestants
    assert ldadamw.lrs == (1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2) and len(galore.lrs) == 5
    assert study.settings == {"preset": "demo", "steps": 5, "threads": 1} and study.seeds == (0, 1)
    assert study.num_runs == 12
    study = study_from("pretrain:demo", "ldadamw,adamw", lrs=None, num_seeds=1, settings=["rank=16"], threads=None)
    assert [dict(contestant.settings) for contestant in study.contestants] == [{"rank": 16}, {}]
    study = study_from("finetune:trec:minilm", "adamw", lrs="1e-4/2e-4", num_seeds=1, settings=[], threads=None)
    assert study.contestants[0].lrs == (1e-4, 2e-4) and study.settings["model"] == "minilm"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "demo"}, "--task must be pretrain:PRESET or finetune:TASK:MODEL, got demo"),
        ({"task": "finetune:trec"}, "--task must be pretrain:PRESET or finetune:TASK:MODEL"),
        ({"optimizers": "sgdd"}, "unknown optimizer 'sgdd'"),
        ({"optimizers": "adamw,adamw"}, "compares adamw twice"),
        ({"optimizers": ","}, "--optimizers is empty"),
        ({"lrs": "muon=1e-3"}, "--lrs names muon, which is not among the optimizers adamw"),
        ({"lrs": "1e-3,2e-3"}, "--lrs has rates for adamw twice, in 1e-3,2e-3: slashes go between rates"),
        ({"lrs": "adamw=1e-3,2e-3"}, "--lrs has rates for adamw twice"),
        ({"settings": ["preset=60m"]}, "--set takes NAME=VALUE with a setting that all runs share, got preset=60m"),
        ({"task": "pretrain:nope", "lrs": "1e-3"}, "unknown preset 'nope'"),
        ({"optimizers": "ldadamw:eager", "lrs": "1e-3"}, "unknown optimizer 'ldadamw:eager'"),
        ({"task": "finetune:trec:minilm", "optimizers": "galore"}, "lr is missing: no learning rate of galore"),
        ({"lrs": "fast"}, "--lrs takes numbers with slashes between"),
        ({"lrs": "1e-3/0"}, "--lrs takes different numbers above 0"),
        ({"settings": ["lr=1"]}, "--set takes NAME=VALUE with a setting that all runs share, got lr=1"),
        ({"settings": ["steps"]}, "--set takes NAME=VALUE"),
        ({"settings": ["steps=many"]}, "steps must be int, got 'many' in --set"),
    ],
)
def test_what_cannot_be_compared(changes, message):
    given = {"task": "pretrain:demo", "optimizers": "adamw", "lrs": None, "settings": [], "num_seeds": 1} | changes
    with pytest.raises(UsageError, match=message):
        study_from(given.pop("task"), given.pop("optimizers"), threads=None, **given)


def test_compare_prints_its_runs_without_making_any(tmp_path, capsys):
    out = tmp_path / "none"
    rates = ("--lrs", "1e-3/2e-3", "--seeds", 1)
    assert ldadam("compare", "--optimizers", "adamw", *rates, "--out", out, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[0].startswith("ldadam pretrain --preset demo --optimizer adamw --lr 0.001")
    assert not out.exists()


def test_dense_weights_keep_their_rate_while_that_of_matrices_is_swept(tmp_path, capsys):
    rates = ("--lrs", "adamw=1e-3/2e-3,muon=8e-3", "--dense-lr", 0.016, "--seeds", 1, "--out", tmp_path / "none")
    assert ldadam("compare", "--optimizers", "adamw,muon", *rates, "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    for line, lr, ratio in zip(lines, (0.001, 0.002, 0.008), (16.0, 8.0, 2.0), strict=True):
        assert f"--lr {lr} " in line and f"--dense-lr-scale {ratio} " in line
    assert ldadam("compare", *rates, "--set", "dense-lr-scale=2", "--optimizers", "adamw,muon") == 2
    assert "--dense-lr and --set dense-lr-scale" in capsys.readouterr().err
    assert ldadam("compare", *rates[2:], "--optimizers", "adamw", "--dense-lr", -1, "--dry-run") == 2
    assert "--dense-lr must be a finite number >= 0, got -1" in capsys.readouterr().err
    # All have the preset's own, if nothing is said.
    unsaid = ("compare", *rates[:2], *rates[4:], "--optimizers", "adamw,muon", "--dry-run")
    assert ldadam(*unsaid) == 0
    assert "--dense-lr-scale" not in capsys.readouterr().out
    study = study_from(
        "pretrain:demo", "adamw,muon", lrs="adamw=1e-3/2e-3,muon=8e-3", num_seeds=1, settings=(), threads=1
    )
    assert [study.config_of(trial).dense_lr_scale for trial in study.sweep()] == [32, 16, 4]
    assert ldadam(*unsaid, "--set", "dense-lr-scale=2") == 0
    assert all("--dense-lr-scale 2.0" in line for line in capsys.readouterr().out.splitlines())
    # LoRA trains no embeddings.
    task = ("--task", "finetune:trec:minilm", "--lrs", "1e-4", "--set", "rank=8")
    assert ldadam("compare", *task, "--optimizers", "adamw,lora", "--dense-lr", 1e-3, "--dry-run") == 0
    adamw, lora, *_ = capsys.readouterr().out.splitlines()
    assert "--dense-lr-scale 10.0" in adamw and "--dense-lr-scale" not in lora


def test_recipes_are_listed_and_each_gives_runs_that_could_begin(capsys):
    from ldadam.comparison.study import KINDS
    from ldadam.finetune.config import resolve as resolve_finetune
    from ldadam.training.config import resolve as resolve_pretrain

    resolve = {"pretrain": resolve_pretrain, "finetune": resolve_finetune}
    assert ldadam("recipes") == 0
    listed = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        assert name in listed
        for study in recipe():
            for trial in study.sweep():
                found = resolve[study.subcommand](study.settings_of(trial))
                assert found.lr == trial.lr
                assert set(study.settings_of(trial)) <= set(fields_of(KINDS[study.subcommand]))
            parallel = study.settings.get("parallel", "none")
            check_study(study, processes=1 if parallel == "none" else 8)
            with pytest.raises(UsageError, match="--processes"):
                check_study(study, processes=8 if parallel == "none" else 1)


@pytest.mark.parametrize("command", [("compare",), ("bench", "step")])
def test_the_help_lists_every_optimizer(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    assert ldadam(*command, "--help") == 0
    shown = capsys.readouterr().out
    assert [name for name in ("ldadamw", "adamw", *PEERS) if name not in shown] == []


def test_an_unknown_recipe_has_a_hint(capsys):
    assert ldadam("run", "minilm-trec") == 2
    assert "did you mean minilm-trec-rank8-cpu?" in capsys.readouterr().err
    assert ldadam("run", "minilm-trec-rank8-cpu", "--dry-run") == 0
    lines = capsys.readouterr().out.splitlines()
    assert (
        len(lines) == 10
        and lines[-1].startswith("# then")
        and "runs/minilm-trec-rank8-cpu/ldadamw-lr0.0001-seed0" in lines[0]
    )


@pytest.mark.slow
def test_rates_of_any_number_of_digits_survive_the_command_line(tmp_path, corpus):
    contestant = Contestant("adamw", (1.23456789e-3,))
    study = tiny_study(corpus, contestant, steps=1, eval_every=1)
    record = run_study(study, tmp_path)
    assert record["contestants"][0]["lr"] == 1.23456789e-3 and not record["failed"]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["Ctrl-C", "SIGTERM"])
def test_a_study_that_is_stopped_stops_its_run_and_goes_on_to_the_same_numbers(tmp_path, corpus, number):
    settings = {"steps": 60, "eval_every": 30, "save_every": 60}
    study = tiny_study(corpus, Contestant("ldadamw", (2e-3,), {"rank": 4}), **settings)
    whole = run_study(study, tmp_path / "whole")
    script = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pathlib import Path\nfrom ldadam.comparison.run_study import run_study\n"
        "from ldadam.comparison.study import Contestant, Study\n"
        f"study = Study('tiny', 'tiny runs', 'pretrain', {dict(study.settings)!r}, "
        "(Contestant('ldadamw', (2e-3,), {'rank': 4}),))\n"
        f"run_study(study, Path({str(tmp_path / 'parts')!r}))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    run = tmp_path / "parts/ldadamw-lr0.002-seed0"
    wait_for_lines(process, run / "metrics.jsonl", 5)
    with pytest.raises(UsageError, match="is in use"):
        run_study(study, tmp_path / "parts")
    # Ctrl-C reaches all processes of the terminal, SIGTERM the one that it is sent to.
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, errors = process.communicate()
    assert "the same command goes on" in errors, errors
    assert len(numbers(run)) < 60 and list(run.glob("checkpoint-*"))
    record = run_study(study, tmp_path / "parts")
    assert record["trials"][0]["validation_loss"] == whole["trials"][0]["validation_loss"]
    assert numbers(run) == numbers(tmp_path / "whole/ldadamw-lr0.002-seed0")


def llama_on_meta(config):
    """The model of a run, without its numbers."""
    from transformers import LlamaConfig, LlamaForCausalLM

    names = ("vocab_size", "hidden_size", "intermediate_size")
    shape = {name: getattr(config, name) for name in names}
    layers = {"num_hidden_layers": config.num_layers, "num_attention_heads": config.num_heads}
    with torch.device("meta"):
        return LlamaForCausalLM(LlamaConfig(**shape, **layers))


@pytest.mark.parametrize(
    "recipe",
    [peers_small_rank16_cpu, peers_demo_rank32_cpu, peers_gutenberg_rank80_cpu],
    ids=lambda recipe: recipe.__name__,
)
def test_the_small_rank_is_the_largest_that_keeps_no_more_bytes_than_apollo(recipe):
    (study,) = recipe()
    apollo = next(one for one in study.contestants if one.optimizer == "apollo")
    ours = next(one for one in study.contestants if one.title.startswith("LDAdamW, residual, int4, rank"))
    config = study.config_of(Trial(ours, ours.lrs[0], 0))

    def state_bytes(optimizer, rank):
        settings = PlanSettings({"rank": rank, "error_dtype": "int4", "backend": "auto"}, optimizer)
        run = find_run(find_source(llama_on_meta(config)), settings, dtype=None)
        return footprint_without_peak(optimizer, run).state.total

    kept = state_bytes("apollo", apollo.settings["rank"])
    assert state_bytes("ldadamw", config.rank) <= kept < state_bytes("ldadamw", config.rank + 1)


def test_equal_seconds_are_those_of_the_steps_that_were_timed_and_rates_the_best():
    """To a whole step."""
    (study,) = equal_seconds_gutenberg_rank80_cpu()
    timed, compared = (
        {row["name"]: row for row in json.loads((ROOT / f"benchmarks/results/{name}.json").read_text())["contestants"]}
        for name in ("times-gutenberg-rank80-cpu", "peers-gutenberg-rank80-cpu")
    )
    first, *_ = a_step = [timed[one.title]["seconds_per_step"][0] for one in study.contestants]
    assert [one.settings["steps"] for one in study.contestants] == [round(300 * first / each) for each in a_step]
    assert [one.lrs for one in study.contestants] == [(compared[one.title]["lr"],) for one in study.contestants]

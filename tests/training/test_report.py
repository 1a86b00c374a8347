"""A report is one page that needs nothing else, and one picture."""

import re

import matplotlib.pyplot as plt
import pytest
from tiny_runs import ldadam

from ldadam.report import load_run, write_report
from ldadam.report.figures import draw_captured_kinds, panels_for
from ldadam.report.run_data import by_kind, layer_number, module_kind


@pytest.fixture(scope="module")
def comparison(tmp_path_factory, finished):
    return write_report(list(finished.values()), tmp_path_factory.mktemp("comparison"))


def test_the_page_needs_nothing_else(comparison):
    page = comparison.read_text()
    sources = re.findall(r"src='([^']{0,40})", page)
    assert len(sources) == 8
    assert all(source.startswith("data:image/png;base64,") for source in sources)
    without_images = re.sub(r"src='[^']*'", "", page)
    assert not re.search(r"https?:|<script|<link|@import|url\(|href", without_images)


def test_the_page_shows_every_setting_and_the_numbers(comparison, finished):
    page = comparison.read_text()
    for name in load_run(finished["adamw"]).config:
        assert f">{name}</td>" in page
    for run in finished.values():
        assert f"{load_run(run).summary()['final_validation_loss']:.4f}" in page


def test_the_picture_is_beside_the_page(comparison):
    assert (comparison.parent / "report.png").read_bytes().startswith(b"\x89PNG")


def test_a_run_without_subspace_has_no_empty_panels(finished):
    low_rank, dense = (panels_for([load_run(finished[name])]) for name in ("ldadamw", "adamw"))
    assert len(low_rank) - len(dense) == 3


def test_pretrain_writes_the_report_unless_told_not_to(tmp_path, finished):
    assert not (finished["ldadamw"] / "report.html").exists()
    assert ldadam("report", finished["ldadamw"], "--out", tmp_path) == 0
    assert (tmp_path / "report.html").exists()


def test_a_single_measurement_can_be_seen(finished):
    run = load_run(finished["ldadamw"])
    measured = [record for record in run.metrics if "captured" in record]
    run.metrics[:] = [record for record in run.metrics if record not in measured[1:]]
    _, ax = plt.subplots()
    draw_captured_kinds(ax, [run])
    assert {line.get_marker() for line in ax.lines} == {"o"}


def test_a_folder_without_a_run_is_one_sentence(tmp_path, capsys):
    assert ldadam("report", tmp_path) == 2
    assert "is no folder of a run that has begun: config.yaml is missing" in capsys.readouterr().err


def test_matrices_are_grouped_by_module_with_layers_in_order():
    names = [f"model.layers.{layer}.mlp.{kind}.weight" for layer in (10, 2) for kind in ("up_proj", "down_proj")]
    assert (module_kind(names[0]), layer_number(names[0])) == ("up_proj", 10)
    groups = by_kind({name: [float(layer_number(name))] for name in names})
    assert groups == {"up_proj": [[2.0], [10.0]], "down_proj": [[2.0], [10.0]]}


def test_the_optimizers_share_is_weighted_by_steps(finished):
    run = load_run(finished["ldadamw"])
    summary = run.summary()
    assert summary["optimizer_seconds"] == pytest.approx(sum(record["optimizer_seconds"] for record in run.metrics))
    assert 0 < summary["optimizer_share"] < 1
    assert summary["optimizer_bytes"] == sum(run.memory["planned"].values())

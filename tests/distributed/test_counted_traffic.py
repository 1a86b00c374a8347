"""Training steps under torch's engines send what `ldadam plan` says, and what the recorded counts are."""

import json
import runpy

import pytest

from distributed.processes import in_processes
from ldadam.bench.traffic import Row, Subject, counted, planned
from ldadam.planner.models import LlamaShape
from test_docs import ROOT

# More than one bucket of DDP, and sides that two processes cannot share evenly.
SMALL = LlamaShape(hidden=96, inner=257, layers=2, heads=4, kv_heads=2, vocab=2801)


@pytest.mark.parametrize("rank", [None, 8], ids=["adamw", "ldadamw"])
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_training_step_sends_what_is_planned(parallel, rank):
    subject = Subject(SMALL, parallel, rank)
    expected = planned(subject, devices=2)
    assert in_processes(counted, 2, subject) == [expected] * 2
    assert {row.phase for row in expected} >= {"backward", *(["step"] if parallel == "fsdp" and rank else [])}


@pytest.mark.parametrize(("dtype", "num_buckets"), [("float32", 2), ("bfloat16", 1)])
def test_a_compressed_training_step_sends_what_is_planned(dtype, num_buckets):
    subject = Subject(SMALL, "compressed", 8, dtype)
    expected = planned(subject, devices=2)
    assert in_processes(counted, 2, subject) == [expected] * 2
    assert [(row.phase, row.count) for row in expected] == [("backward", num_buckets), ("step", 3)]


@pytest.fixture(scope="module")
def benchmark():
    return runpy.run_path(str(ROOT / "benchmarks/traffic.py"))


@pytest.fixture(scope="module")
def runs(benchmark):
    return json.loads(benchmark["RESULTS"].read_text())["runs"]


def test_the_recorded_counts_are_those_of_the_page_and_of_the_plan(benchmark, runs):
    assert benchmark["table"]({"runs": runs}) in (ROOT / "docs/distributed.md").read_text()
    for (model, subject), run in zip(benchmark["subjects"](), runs, strict=True):
        expected = {"model": model, "layers": subject.shape.layers, "parallel": subject.parallel, "rank": subject.rank}
        assert expected.items() <= run.items()
        assert [Row(**row) for row in run["collectives"]] == planned(subject, devices=2)


def test_compressed_at_rank_32_sends_a_twentieth_of_the_gradients_of_the_1b_model(benchmark, runs):
    """Of those of its matrices, and in as many collectives however many layers there are."""
    backward, step = {}, {}
    for run in runs:
        if run["model"] == "1b" and run["rank"] in (None, 32):
            key = run["parallel"], run["rank"], run["layers"]
            backward[key], step[key] = (benchmark["sent"](run, phase) for phase in ("backward", "step"))
    for layers in (1, 2):
        (num_bytes, calls), (of_dense, buckets) = (sent["compressed", 32, layers] for sent in (step, backward))
        assert num_bytes <= 0.05 * (backward["ddp", None, layers][0] - of_dense)
        assert num_bytes == layers * step["compressed", 32, 1][0]
        assert (calls, buckets) == (3, 2) and calls + buckets <= 8

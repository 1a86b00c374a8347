"""The tables of large models in docs/distributed.md are what their generator prints."""

import runpy

import pytest

from test_docs import ROOT


@pytest.fixture(scope="module")
def generator():
    return runpy.run_path(str(ROOT / "benchmarks" / "scale_on_paper.py"))


def test_the_page_has_the_tables_of_the_generator(generator):
    page = (ROOT / "docs" / "distributed.md").read_text()
    for table in generator["tables"]():
        assert table in page


def test_the_7b_model_takes_four_messages_at_rank_32():
    from ldadam import plan

    found = plan("7b", rank=32, dtype="bfloat16", devices=8)
    of_step = [each for each in found.traffic if each.phase == "step"]
    assert [each.count for each in of_step] == [1, 1, 1, 1]
    assert found.footprint.messages <= 256 * 2**20

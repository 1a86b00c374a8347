"""What several of these tests share: a corpus, an encoder, labelled texts, and one finished run of each optimizer."""

import pytest
from tiny_models import labelled_rows, save_encoder, write_table
from tiny_runs import ldadam, options, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="session")
def finished(tmp_path_factory, corpus):
    """Folders of two finished runs, by optimizer."""
    folder = tmp_path_factory.mktemp("finished")
    for optimizer in ("ldadamw", "adamw"):
        assert ldadam(*options(folder / optimizer, corpus, optimizer=optimizer)) == 0
    return {optimizer: folder / optimizer for optimizer in ("ldadamw", "adamw")}


@pytest.fixture(scope="session")
def encoder(tmp_path_factory):
    return save_encoder(tmp_path_factory.mktemp("encoder"))


@pytest.fixture(scope="session")
def table(tmp_path_factory):
    return write_table(tmp_path_factory.mktemp("table") / "moods.csv", labelled_rows())

"""What several of these tests share: a corpus on disk, and one finished run of each optimizer."""

import pytest
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

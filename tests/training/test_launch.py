"""A layout that does not fit the processes, or settings that do not fit the layout, are one sentence from rank 0."""

import pytest
from tiny_runs import config, ldadam, options

from ldadam.training.errors import UsageError
from ldadam.training.launch import Launch, check_layout, shard_size

FOUR = Launch(True, world_size=4, local_world_size=4)
TWO_HOSTS = Launch(True, world_size=8, local_world_size=4)

REFUSED = {
    "there are 4 processes and parallel is none: choose --parallel ddp": {},
    "batch_size counts the sequences of all processes, and 6 cannot be": {"parallel": "ddp", "batch_size": 6},
    "step_in_backward moves a weight before ddp": {"parallel": "ddp", "step_in_backward": True},
    "with adamw use ddp": {"parallel": "compressed", "optimizer": "adamw"},
    "shard_size has no effect with parallel fsdp": {"parallel": "fsdp", "shard_size": 2},
    "shard_size must divide the number of processes, 4; got 3": {"parallel": "hsdp", "shard_size": 3},
    "all 4 processes are on one host": {"parallel": "hsdp"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_does_not_fit_is_refused(tmp_path, sentence):
    with pytest.raises(UsageError, match=sentence):
        check_layout(config(tmp_path, tmp_path, **REFUSED[sentence]), FOUR)


ALLOWED = [
    {"parallel": "ddp"},
    {"parallel": "compressed"},
    {"parallel": "compressed", "step_in_backward": True},
    {"parallel": "compressed", "max_grad_norm": 1.0},
    {"parallel": "fsdp", "step_in_backward": True},
    {"parallel": "hsdp", "shard_size": 2, "step_in_backward": True},
]


@pytest.mark.parametrize("changes", ALLOWED, ids=str)
def test_the_rest_is_not(tmp_path, changes):
    check_layout(config(tmp_path, tmp_path, **changes), FOUR)


def test_hsdp_shards_within_a_host(tmp_path):
    settings = config(tmp_path, tmp_path, parallel="hsdp", batch_size=8)
    check_layout(settings, TWO_HOSTS)
    assert shard_size(settings, TWO_HOSTS) == 4


def test_a_layout_without_torchrun_says_how_to_start(tmp_path, corpus, capsys):
    assert ldadam(*options(tmp_path / "run", corpus, parallel="ddp")) == 2
    assert "torchrun --nproc-per-node N -m ldadam pretrain" in capsys.readouterr().err


@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_without_a_layout_is_one_sentence_of_rank_0(tmp_path, corpus, capsys, monkeypatch, rank):
    for name, value in {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert ldadam(*options(tmp_path / "run", corpus)) == 2
    errors = capsys.readouterr().err
    assert len(errors.strip().splitlines()) == (rank == 0)
    assert ("choose --parallel ddp" in errors) == (rank == 0)
    assert not (tmp_path / "run").exists()


def test_other_launchers_without_a_layout_are_refused_too(tmp_path, corpus, capsys, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ldadam(*options(tmp_path / "run", corpus)) == 2
    assert "there are 2 processes and parallel is none" in capsys.readouterr().err

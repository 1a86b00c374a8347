"""What `--optimizer` and its options build."""

import copy

import pytest
import torch
from tiny_runs import config, ldadam, numbers, options

from ldadam.peers import PEERS, Combined, split
from ldadam.training.errors import UsageError
from ldadam.training.optimizers import build_optimizer, find_optimizer


def model():
    torch.manual_seed(0)
    layers = {
        "embed_tokens": torch.nn.Embedding(20, 24),
        "q_proj": torch.nn.Linear(24, 32),
        "out": torch.nn.Linear(32, 24),
    }
    return torch.nn.ModuleDict(layers)


def ranks(optimizer, module):
    names = {id(param): name for name, param in module.named_parameters()}
    return {names[id(param)]: group["rank"] for group in optimizer.param_groups for param in group["params"]}


def test_rank_overrides_reach_the_param_groups(tmp_path):
    module = model()
    given = config(tmp_path, tmp_path, rank=8, rank_overrides="q_proj=16, out=0.5")
    found = ranks(build_optimizer(module, given), module)
    assert found["q_proj.weight"] == 16 and found["out.weight"] == 4 and found["embed_tokens.weight"] is None
    given = config(tmp_path, tmp_path, rank=8, rank_overrides="q_proj=none")
    assert ranks(build_optimizer(module, given), module)["q_proj.weight"] is None


@pytest.mark.parametrize("optimizer", ["ldadamw", "adamw", "muon", "adafactor", "torch.optim:SGD"])
def test_what_stays_dense_may_have_a_learning_rate_of_its_own(tmp_path, optimizer):
    module = model()
    rank = None if optimizer in ("adamw", "muon", "adafactor") else 4
    given = config(tmp_path, tmp_path, optimizer=optimizer, rank=rank, lr=1e-3, dense_lr_scale=4.0)
    built = build_optimizer(module, given)
    names = {id(param): name for name, param in module.named_parameters()}
    found = {names[id(param)]: group["lr"] for group in built.param_groups for param in group["params"]}
    matrices = {"q_proj.weight", "out.weight"}
    assert found == {name: 1e-3 if name in matrices else 4e-3 for name in names.values()}


@pytest.mark.parametrize("options", [{"rank_overrides": "q_proj=none"}, {"target_modules": "out"}])
def test_a_matrix_without_a_rank_keeps_the_learning_rate_of_matrices(tmp_path, options):
    module = model()
    built = build_optimizer(module, config(tmp_path, tmp_path, rank=4, lr=1e-3, dense_lr_scale=4.0, **options))
    names = {id(param): name for name, param in module.named_parameters()}
    found = {
        names[id(param)]: (group["rank"], group["lr"]) for group in built.param_groups for param in group["params"]
    }
    assert found["q_proj.weight"] == (None, 1e-3) and found["out.weight"] == (4, 1e-3)
    assert found["embed_tokens.weight"] == found["q_proj.bias"] == (None, 4e-3)


def test_a_peer_does_not_give_the_dense_rate_to_matrices_that_are_left_out(tmp_path):
    given = config(tmp_path, tmp_path, optimizer="galore", rank=4, lr=1e-3, dense_lr_scale=4.0, target_modules="out")
    with pytest.raises(
        UsageError, match=r"target_modules leaves out matrices.*: leave it out, or give dense_lr_scale=1"
    ):
        build_optimizer(model(), given)


def test_peers_get_the_matrices_that_ldadamw_projects():
    from ldadam import lowrank_param_groups

    module = model()
    weights = split(lowrank_param_groups(module, rank=4))
    assert [tuple(param.shape) for param in weights.low_rank] == [(32, 24), (24, 32)]
    assert len(weights.params) == len(list(module.parameters()))


def test_two_optimizers_together_are_both_of_them_and_resume_as_one():
    def stepped(optimizer, params, seed):
        generator = torch.Generator().manual_seed(seed)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator)
        optimizer.step()

    def made():
        params = [torch.nn.Parameter(torch.ones(4, 6)), torch.nn.Parameter(torch.ones(5))]
        parts = torch.optim.Muon(params[:1], lr=0.1, weight_decay=0.0), torch.optim.AdamW(params[1:], lr=0.1)
        return params, parts

    params, parts = made()
    for seed in range(3):
        stepped(parts[0], params[:1], seed), stepped(parts[1], params[1:], 10 + seed)
    together, both = made()
    optimizer = Combined(*both)
    for seed in range(2):
        for param, number in zip(together, (seed, 10 + seed), strict=True):
            param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()
    saved, weights = copy.deepcopy(optimizer.state_dict()), [param.detach().clone() for param in together]
    resumed, both = made()
    optimizer = Combined(*both)
    optimizer.load_state_dict(saved)
    for param, weight, number in zip(resumed, weights, (2, 12), strict=True):
        param.data.copy_(weight)
        param.grad = torch.randn(param.shape, generator=torch.Generator().manual_seed(number))
    optimizer.step()
    for param, expected in zip(resumed, params, strict=True):
        assert torch.equal(param, expected)
    # A schedule that sets the rate of the whole sets that of its parts.
    optimizer.param_groups[0]["lr"] = 0.0
    before = resumed[0].detach().clone()
    optimizer.step()
    assert torch.equal(resumed[0], before)


def test_a_run_with_muon_resumes_bit_for_bit(tmp_path, corpus):
    """One of the peers that torch brings, so that it is always there."""
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    given = {"optimizer": "muon", "rank": None, "lr": 2e-3}
    arguments = [options(out, corpus, **given) for out in (whole, parts)]
    arguments = [[item for item in each if item not in ("--rank", "None")] for each in arguments]
    assert ldadam(*arguments[0]) == 0
    assert ldadam(*arguments[1]) == 0
    last = max(parts.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    for file in sorted(last.rglob("*"), reverse=True):
        file.unlink()
    last.rmdir()
    assert ldadam("pretrain", "--resume", "--out", parts) == 0
    assert numbers(parts) == numbers(whole)


@pytest.mark.parametrize("name", PEERS)
def test_a_peer_refuses_what_it_does_not_know(tmp_path, corpus, name, capsys):
    assert ldadam("pretrain", "--optimizer", name, "--rho", "0.5", "--out", tmp_path / "run") == 2
    assert f"rho has no effect on {name}: leave it out" in capsys.readouterr().err
    assert find_optimizer(name).defaults()["lr"] > 0


def test_a_peer_that_is_not_installed_is_one_sentence(tmp_path, corpus, capsys, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "galore_torch", None)
    assert ldadam(*options(tmp_path / "run", corpus, optimizer="galore")) == 1
    assert "galore cannot be built" in (errors := capsys.readouterr().err) and "pip install galore-torch" in errors


def test_a_peer_whose_state_is_not_tensors_is_not_resumed(tmp_path, corpus, capsys):
    given = options(tmp_path / "run", corpus, optimizer="strange_optimizers:Spoiler", steps=4)
    import sys

    sys.path.insert(0, "tests/bench")
    try:
        assert ldadam(*given) == 0
        assert ldadam("pretrain", "--resume", "--out", tmp_path / "run") == 2
    finally:
        sys.path.remove("tests/bench")
    assert "whose state holds more than tensors" in capsys.readouterr().err

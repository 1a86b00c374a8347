"""What is suggested fits, is the best that does, and grows with the budget; what cannot fit is refused."""

import itertools

import pytest
import torch

from ldadam import LDAdamW, lowrank_param_groups, plan, suggest
from ldadam.planner import suggestion
from ldadam.planner.footprint import RESERVED_BYTES
from ldadam.planner.suggestion import ERROR_DTYPES

MATRICES = {"embed.weight": (300, 64), "0.weight": (64, 256), "0.bias": (256,)}
RANKS = (1 / 4, 1 / 16)
STORAGES = {name: why for name, why in ERROR_DTYPES.items() if name in ("float32", "bfloat16", "int4")}
BYTE = 2**-30  # in GB


def planned_total(rank, error_dtype, step_in_backward):
    options = {"rank": rank, "error_dtype": error_dtype, "step_in_backward": step_in_backward}
    return plan(MATRICES, dtype="bfloat16", device="cpu", **options).footprint.total


def suggested(num_bytes, **options):
    found = suggest(MATRICES, budget_gb=(num_bytes + RESERVED_BYTES) * BYTE, dtype="bfloat16", device="cpu", **options)
    return found.rank, found.error_dtype, found.step_in_backward


@pytest.fixture(autouse=True)
def fewer_candidates(monkeypatch):
    """Each is planned, which takes time."""
    monkeypatch.setattr(suggestion, "RANKS", RANKS)
    monkeypatch.setattr(suggestion, "ERROR_DTYPES", STORAGES)


@pytest.fixture(scope="module")
def totals():
    """Bytes of every choice, best first."""
    return {choice: planned_total(*choice) for choice in itertools.product(RANKS, STORAGES, (False, True))}


def test_the_best_choice_that_fits_is_suggested_at_every_budget(totals):
    """So it is within the budget, and a larger budget never gives a worse one."""
    for budget in sorted(set(totals.values()))[::3]:
        assert suggested(budget) == next(choice for choice, total in totals.items() if total <= budget)


def test_what_is_asked_for_is_kept(totals):
    for mode in (False, True):
        budget = totals[RANKS[1], "bfloat16", mode]
        assert suggested(budget, step_in_backward=mode)[2] is mode


def test_an_impossible_budget_is_refused_with_the_smallest_plan(totals):
    smallest = min(totals.values())
    assert suggested(smallest)
    with pytest.raises(ValueError, match=r"nothing fits into 1.0.* GB: the smallest plan needs 1.00"):
        suggested(smallest - 1)


def test_what_was_given_already_is_not_recommended():
    with pytest.raises(ValueError, match=r'Try dtype="bfloat16" or several devices \(ldadam plan --devices\)$'):
        suggest("demo", budget_gb=1, step_in_backward=True)
    asked = {"dtype": "bfloat16", "batch": 1, "seq": 64, "checkpointing": True, "step_in_backward": True}
    with pytest.raises(ValueError, match=r"Try fewer tokens at a time or several devices"):
        suggest("demo", budget_gb=1, **asked)
    with pytest.raises(ValueError, match=r"Try step_in_backward=True or several devices"):
        suggest("demo", budget_gb=1, dtype="bfloat16", step_in_backward=False)


@pytest.mark.parametrize("budget_gb", [0, -1, float("nan"), float("inf"), "24", True])
def test_a_budget_that_is_no_number_of_gigabytes_is_refused(budget_gb):
    with pytest.raises(ValueError, match=f"budget_gb must be a positive number.*got {budget_gb!r}"):
        suggest(MATRICES, budget_gb=budget_gb)


def test_a_suggestion_for_a_module_is_what_its_optimizer_takes():
    model = torch.nn.Sequential(torch.nn.Embedding(300, 64), torch.nn.Linear(64, 256), torch.nn.Linear(256, 64))
    found = suggest(model, budget_gb=2, device="cpu")
    optimizer = LDAdamW(lowrank_param_groups(model, rank=found.rank), error_dtype=found.error_dtype)
    model(torch.arange(8)).square().mean().backward()
    optimizer.step()
    live = sum(value.nbytes for state in optimizer.state.values() for value in state.values())
    assert found.plan.footprint.state.total == live


def test_a_folder_is_read_once_for_all_candidates(tmp_path, monkeypatch):
    from transformers import AutoConfig, LlamaConfig

    sizes = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaConfig(vocab_size=100, **sizes).save_pretrained(tmp_path)
    read, from_pretrained = [], AutoConfig.from_pretrained
    monkeypatch.setattr(AutoConfig, "from_pretrained", lambda name: (read.append(name), from_pretrained(name))[1])
    with pytest.raises(ValueError, match=r"nothing fits into 1 GB.*"):
        suggest(str(tmp_path), budget_gb=1, step_in_backward=True, device="cpu")
    assert read == [str(tmp_path)]
    found = suggest(str(tmp_path), budget_gb=2, step_in_backward=True, device="cpu")
    assert found.plan.model == str(tmp_path)


def test_activations_count():
    small = suggest("demo", budget_gb=4, dtype="bfloat16", device="cpu")
    assert "activations are not in it (give batch and seq)" in small.reasons["memory"]
    large = suggest("demo", budget_gb=4, dtype="bfloat16", device="cpu", batch=16, seq=128)
    assert "activations of 16 x 128 tokens estimated" in large.reasons["memory"]
    assert large.plan.footprint.total > small.plan.footprint.total


def test_a_suggestion_prints_each_choice_with_its_reason():
    found = suggest("demo", budget_gb=4, dtype="bfloat16", device="cpu")
    lines = str(found).splitlines()
    assert [line.split()[0] for line in lines] == list(found.reasons)
    assert lines[3].startswith("lr_range          0.002 to 0.008  half to twice the 0.004 of the preset")
    assert all(line.endswith(reason) for line, reason in zip(lines, found.reasons.values(), strict=True))

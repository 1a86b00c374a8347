"""LoRA beside the optimizers: only adapters and heads move, and a resumed run is an uninterrupted one."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import labelled_rows, write_table
from tiny_runs import ldadam, numbers

from ldadam.training.adapters import add_adapters


def options(out, encoder, table, **changes):
    settings = {"text-column": "sentence", "label-column": "mood", "lr": 2e-2, "steps": 60, "threads": 1}
    settings |= {
        "device": "cpu",
        "optimizer": "lora",
        "rank": 4,
        "model": encoder,
        "train": table,
        "out": out,
        **changes,
    }
    return ["finetune", *(item for name, value in settings.items() for item in (f"--{name}", value)), "--no-report"]


def test_it_learns_and_moves_adapters_and_the_head_alone(tmp_path, encoder, table):
    assert ldadam(*options(tmp_path / "run", encoder, table)) == 0
    first, *_, last = numbers(tmp_path / "run")
    assert last["val_loss"] < 0.5 < first["loss"]
    trained = load_file(tmp_path / "run" / "checkpoint-60" / "model.safetensors")
    before = load_file(encoder / "model.safetensors")
    names = {name.removeprefix("bert.").replace("base_layer.", ""): name for name in trained}
    assert all(torch.equal(trained[names[name]], weight) for name, weight in before.items())
    moved = {name for name in trained if "lora_" in name}
    assert len(moved) == 2 * 2 * 6 + 2
    assert all(trained[name].abs().max() > 0 for name in moved)


def test_a_resumed_run_is_an_uninterrupted_one(tmp_path, encoder, table):
    settings = {"steps": 8, "save-every": 4, "eval-every": 4}
    assert ldadam(*options(tmp_path / "whole", encoder, table, **settings)) == 0
    assert ldadam(*options(tmp_path / "run", encoder, table, **settings)) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoint-8")
    assert ldadam("finetune", "--resume", "--out", tmp_path / "run") == 0
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")
    weights = [load_file(tmp_path / name / "checkpoint-8" / "model.safetensors") for name in ("run", "whole")]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_adapters_begin_as_the_seed_says(encoder):
    from transformers import AutoModelForSequenceClassification

    found = []
    for seed in (0, 0, 1):
        model = AutoModelForSequenceClassification.from_pretrained(encoder)
        add_adapters(model, rank=4, target_modules=None, seed=seed)
        trained = {name for name, param in model.named_parameters() if param.requires_grad}
        assert {name for name in trained if "lora_" not in name} == {"classifier.weight", "classifier.bias"}
        found.append({name: param for name, param in model.named_parameters() if "lora_A" in name})
    first, same, other = found
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_a_head_of_several_layers_is_trained_in_full_and_not_adapted():
    from transformers import DistilBertConfig, DistilBertForSequenceClassification

    model = DistilBertForSequenceClassification(
        DistilBertConfig(vocab_size=40, dim=32, hidden_dim=48, n_layers=1, n_heads=2)
    )
    add_adapters(model, rank=4, target_modules=None, seed=0)
    trained = {name for name, param in model.named_parameters() if param.requires_grad and "lora_" not in name}
    assert trained == {f"{layer}.{kind}" for layer in ("pre_classifier", "classifier") for kind in ("weight", "bias")}
    assert any("lora_" in name for name, _ in model.named_parameters())


def test_random_weights_and_models_of_others_are_refused(tmp_path, capsys):
    assert ldadam("pretrain", "--preset", "demo", "--optimizer", "lora", "--steps", 1, "--out", tmp_path) == 2
    assert "which are random in pretrain: use ldadam finetune" in capsys.readouterr().err
    table = write_table(tmp_path / "moods.csv", labelled_rows())
    assert ldadam(*options(tmp_path / "run", "any", table, **{"dense-lr-scale": 4.0})) == 2
    assert "dense_lr_scale has no effect on lora" in capsys.readouterr().err
    with pytest.raises(ValueError, match="pre-trained models of transformers, got Linear"):
        add_adapters(torch.nn.Linear(8, 8), rank=2, target_modules=None, seed=0)

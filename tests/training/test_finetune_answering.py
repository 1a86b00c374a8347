"""Answering: what is predicted of a sequence, how sequences are packed, and what counts as a right answer."""

import pytest
import torch
from tiny_models import problem_rows, save_causal_model, write_jsonl
from tiny_runs import ldadam, numbers
from transformers import AutoModelForCausalLM, AutoTokenizer

from ldadam.finetune.answering import answering, exact_match, generate, result_of, summed_loss
from ldadam.finetune.config import resolve
from ldadam.finetune.examples import Problem, Problems
from ldadam.finetune.sequences import collate_packed, collate_padded, encode, pack
from ldadam.training.errors import UsageError
from ldadam.training.shares import IGNORED
from tolerances import TOLERANCES

TINY = {"prompt-column": "question", "rank": 4, "lr": 1e-2, "steps": 8, "batch-size": 4, "length": 64, "threads": 1}
TINY |= {"device": "cpu", "generate-tokens": 0, "eval-examples": 6}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return save_causal_model(tmp_path_factory.mktemp("causal"))


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    return write_jsonl(tmp_path_factory.mktemp("problems") / "sums.jsonl", problem_rows())


@pytest.fixture
def model(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.config.use_cache = False
    return model


@pytest.fixture(scope="module")
def tokenizer(folder):
    return AutoTokenizer.from_pretrained(folder)


def run(out, folder, problems, *flags, **changes):
    settings = {**TINY, **{k.replace("_", "-"): v for k, v in changes.items()}}
    given = [item for name, value in settings.items() for item in (f"--{name}", value)]
    return ldadam("finetune", "--model", folder, "--train", problems, *given, "--out", out, "--no-report", *flags)


def encoded(tokenizer, count=9):
    texts = [Problem(row["question"], row["answer"]) for row in problem_rows(count)]
    return [encode(problem, tokenizer, template="{prompt}\n", length=64) for problem in texts]


def test_only_the_answer_and_its_end_are_predicted(tokenizer):
    one = encode(Problem("2 and 3?", "5"), tokenizer, template="Question: {prompt}\n", length=64)
    predicted = [token for token in one.labels() if token != IGNORED]
    assert tokenizer.decode(predicted) == f"5{tokenizer.eos_token}"
    assert tokenizer.decode(one.tokens) == f"{tokenizer.eos_token}Question: 2 and 3?\n5{tokenizer.eos_token}"


def test_a_long_answer_is_cut_and_a_long_prompt_left_out(tokenizer):
    problem = Problem("2 and 3?", "5 " * 50)
    assert len(encode(problem, tokenizer, template="{prompt}\n", length=30).tokens) == 30
    assert encode(problem, tokenizer, template="{prompt}" * 30, length=30) is None


def test_packs_hold_every_example_once_and_no_more_than_fits(tokenizer):
    examples = encoded(tokenizer)
    packs = pack(examples, 64)
    assert [one for group in packs for one in group] == examples
    assert all(sum(len(one.tokens) for one in group) <= 64 for group in packs)
    assert len(packs) < len(examples)


def test_packed_examples_do_not_see_each_other(tokenizer, model):
    """The loss of packed rows is that of one example per row, and so are its gradients."""
    examples = encoded(tokenizer)
    padded = collate_padded(examples, pad=tokenizer.pad_token_id)
    packed = collate_packed(pack(examples, 64), pad=tokenizer.pad_token_id, length=64)
    assert packed["input_ids"].numel() < padded["input_ids"].numel() + 64
    found = []
    for batch in (padded, packed):
        labels = batch.pop("labels")
        model.zero_grad()
        loss = summed_loss(model(**batch).logits, labels)
        loss.backward()
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (loss, grad), (packed_loss, packed_grad) = found
    assert packed_loss == pytest.approx(loss, rel=TOLERANCES["float32 memory order"])
    assert (packed_grad - grad).norm() <= TOLERANCES["float32 memory order"] * grad.norm()


@pytest.mark.parametrize(
    ("answer", "result"),
    [
        ("Two apples.\n#### 1,234", "1234"),
        ("#### $12.50", "12.5"),
        ("#### 3.0", "3"),
        ("#### 120", "120"),
        ("#### -7.", "-7"),
        ("#### 30%", "30"),
        ("#### 1\n#### 2", "2"),
        ("Paris ", "Paris"),
        ("#### none", "none"),
    ],
)
def test_what_counts_of_an_answer(answer, result):
    assert result_of(answer) == result


def test_an_answer_does_not_hang_on_the_others_in_its_batch(tokenizer, model):
    prompts = ["1: 2 and 3?\n", "and\n", "17: 8 and 9? and 4 and 5?\n"]
    prompts = tokenizer(prompts)["input_ids"]
    together = generate(model, tokenizer, prompts, max_new_tokens=8)
    assert together == [generate(model, tokenizer, [prompt], max_new_tokens=8)[0] for prompt in prompts]


def test_exact_match_counts_right_results(tokenizer, model, folder):
    """The model's own answers to two problems, and a wrong one to a third."""
    config = resolve({"model": str(folder), "task": "gsm8k", "generate_tokens": 8, "batch_size": 2})
    prompts = ["1: 2 and 3?", "2: 4 and 4?", "3: 1 and 1?"]
    tokens = tokenizer([f"{prompt}\n" for prompt in prompts])["input_ids"]
    answers = generate(model, tokenizer, tokens, max_new_tokens=8)
    problems = [Problem(p, a) for p, a in zip(prompts, (*answers[:2], "#### wrong"), strict=True)]
    encoded = [encode(problem, tokenizer, template="{prompt}\n", length=64) for problem in problems]
    assert exact_match(config, model, tokenizer, problems, encoded) == pytest.approx(2 / 3)


def test_braces_of_a_template_are_its_own(tokenizer):
    problem = Problem("{x} and 2?", "4")
    found = encode(problem, tokenizer, template='{"say": 1} {prompt}', length=64)
    assert tokenizer.decode(found.tokens[: found.num_prompt], skip_special_tokens=True) == '{"say": 1} {x} and 2?'


def test_a_model_that_reads_later_tokens_is_refused(tokenizer, tmp_path):
    from transformers import BertConfig, BertLMHeadModel

    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1}
    sizes["initializer_range"] = 0.5  # so that tokens are heard
    BertLMHeadModel(BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = resolve({"model": str(tmp_path), "task": "gsm8k", "length": 64, "generate_tokens": 8})
    with pytest.raises(UsageError, match="expected a causal language model"):
        answering(config, Problems("sums", [Problem("1 and 2?", "3")], [Problem("2 and 2?", "4")]))


def test_sequences_that_the_model_has_no_positions_for_are_refused(model, folder):
    positions = model.config.max_position_embeddings
    config = resolve({"model": str(folder), "task": "gsm8k", "length": positions, "generate_tokens": 8})
    with pytest.raises(UsageError, match=f"has {positions} positions, and length={positions} with"):
        answering(config, Problems("sums", [Problem("1 and 2?", "3")], [Problem("2 and 2?", "4")]))


def test_a_model_learns_an_answer_and_is_scored_by_it(tmp_path, folder):
    rows = [{"question": f"{n} and?", "answer": "#### 7"} for n in range(60)]
    problems = write_jsonl(tmp_path / "same.jsonl", rows)
    assert run(tmp_path / "run", folder, problems, steps=30, generate_tokens=8) == 0
    assert numbers(tmp_path / "run")[-1]["scores"] == {"exact_match": 1.0}


SAME = {
    "gradient checkpointing": ["--gradient-checkpointing"],
    "a step in backward": ["--step-in-backward"],
    "accumulation": ["--batch-size", "1", "--grad-accum", "4"],
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory, folder, problems):
    out = tmp_path_factory.mktemp("plain") / "run"
    assert run(out, folder, problems) == 0
    return numbers(out)


@pytest.mark.parametrize("way", SAME)
def test_ways_to_save_memory_give_the_same_numbers(tmp_path, folder, problems, plain, way):
    """Answers differ in length, so that accumulation has to weigh them by tokens."""
    assert run(tmp_path / "run", folder, problems, *SAME[way]) == 0
    found, near = numbers(tmp_path / "run"), TOLERANCES["learning curve, other order"]
    assert [r["loss"] for r in found] == pytest.approx([r["loss"] for r in plain], rel=near)
    assert found[-1]["val_loss"] == pytest.approx(plain[-1]["val_loss"], rel=near)


def test_packed_in_bfloat16_with_an_int8_buffer_stepping_in_backward(tmp_path, folder, problems):
    flags = ["--packing", "--step-in-backward", "--dtype", "bfloat16", "--error-dtype", "int8"]
    assert run(tmp_path / "run", folder, problems, *flags, steps=20) == 0
    records = numbers(tmp_path / "run")
    assert records[-1]["val_loss"] < records[0]["loss"] - 1
    assert all(record["tokens"] == 4 * 64 * record["step"] for record in records)


def test_prompts_that_are_too_long_are_said(tmp_path, folder, capsys):
    rows = [*problem_rows(60), *({"question": f"{n}{' and 4?' * 60}", "answer": "1"} for n in range(5))]
    problems = write_jsonl(tmp_path / "mixed.jsonl", rows)
    assert run(tmp_path / "run", folder, problems, steps=2, eval_examples=100) == 0
    assert "examples of mixed.jsonl are left out: their prompts have 64 tokens or more" in capsys.readouterr().err
    assert run(tmp_path / "none", folder, problems, length=4) == 2
    assert "every prompt of mixed.jsonl has 4 tokens or more: give a larger --length" in capsys.readouterr().err

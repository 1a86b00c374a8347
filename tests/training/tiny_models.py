"""Models and labelled files small enough that fine-tuning takes a second."""

import csv
import json
import random
from pathlib import Path

from tokenizers.processors import TemplateProcessing

from ldadam.training.packing import train_tokenizer

GOOD, BAD = ("lovely", "bright", "warm", "kind"), ("dull", "cold", "grim", "sour")
NEUTRAL = ("the", "film", "was", "and", "a", "story", "of", "rain")


def labelled_rows(count: int = 200, *, seed: int = 0) -> list[dict]:
    """Sentences of random words, of which one or two tell the label."""
    rng = random.Random(seed)
    rows = []
    for number in range(count):
        label = number % 2
        words = [*rng.choices(GOOD if label else BAD, k=rng.randint(1, 2)), *rng.choices(NEUTRAL, k=rng.randint(3, 9))]
        rng.shuffle(words)
        rows.append({"sentence": f"{number} {' '.join(words)}", "mood": "good" if label else "bad"})
    return rows


def problem_rows(count: int = 120, *, seed: int = 0) -> list[dict]:
    """Sums whose worked answer ends in the result."""
    rng = random.Random(seed)
    drawn = [(rng.randint(0, 9), rng.randint(0, 9), number) for number in range(count)]
    return [{"question": f"{n}: {a} and {b}?", "answer": f"{a} + {b} = {a + b}\n#### {a + b}"} for a, b, n in drawn]


def write_table(path: Path, rows: list[dict], delimiter: str = ",") -> Path:
    """Rows as a .csv or .tsv file."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: list[dict]) -> Path:
    """Rows as a .jsonl file."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def save_encoder(folder: Path, *, dropout: float = 0.1) -> Path:
    """A BERT with random weights and a tokenizer of its own."""
    from transformers import BertConfig, BertModel, set_seed

    tokenizer = _save_tokenizer(folder, [row["sentence"] for row in labelled_rows()])
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    dropouts = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    config = BertConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes, **dropouts)
    BertModel(config).save_pretrained(folder)
    return folder


def save_causal_model(folder: Path) -> Path:
    """A Llama with random weights and a tokenizer of its own."""
    from transformers import LlamaConfig, LlamaForCausalLM, set_seed

    tokenizer = _save_tokenizer(folder, [f"{row['question']} {row['answer']}" for row in problem_rows()])
    set_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), max_position_embeddings=128, **sizes)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _save_tokenizer(folder: Path, texts: list[str]):
    tokenizer = train_tokenizer(texts, vocab_size=300)
    tokenizer.pad_token = tokenizer.eos_token
    # Every text begins with a token that stands for it, as BERT's do.
    special = [(tokenizer.eos_token, tokenizer.eos_token_id)]
    template = TemplateProcessing(single=f"{tokenizer.eos_token} $A", special_tokens=special)
    tokenizer.backend_tokenizer.post_processor = template  # pyright: ignore
    tokenizer.save_pretrained(folder)
    return tokenizer

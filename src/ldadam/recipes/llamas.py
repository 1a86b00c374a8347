"""The small Llamas that recipes train from scratch on a processor, as settings of `ldadam pretrain`."""

from __future__ import annotations

from typing import Any

_SHARED: dict[str, Any] = {"preset": "demo", "device": "cpu", "keep_checkpoints": 0, "monitor_every": 0}

# Three minutes a run.
DEMO: dict[str, Any] = {**_SHARED, "steps": 600, "eval_every": 100, "save_every": 600}

# Half the demo's width and half a minute a run.
HALF_DEMO: dict[str, Any] = {
    **_SHARED,
    "hidden_size": 64,
    "intermediate_size": 176,
    "num_layers": 3,
    "vocab_size": 2048,
    "batch_size": 8,
    "steps": 300,
    "eval_every": 50,
    "save_every": 300,
}

# Ten million parameters, four minutes a run.
TEN_MILLION: dict[str, Any] = {
    **_SHARED,
    "corpus": "gutenberg",
    "hidden_size": 320,
    "intermediate_size": 864,
    "num_layers": 6,
    "num_heads": 5,
    "batch_size": 8,
    "steps": 300,
    "eval_every": 100,
    "save_every": 300,
}

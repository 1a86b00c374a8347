"""What is planned: the names, shapes and dtypes of a model's weights, on meta tensors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import Parameter

from ldadam.bench.models import PAPERS_VOCAB_SIZE, listed_sizes
from ldadam.param_groups import lowrank_param_groups
from ldadam.training.presets import PRESETS


@dataclass(frozen=True)
class LlamaShape:
    """The sizes of a Llama-like decoder: RMSNorm, rotary attention with grouped keys, gated SiLU."""

    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int

    @property
    def kv(self) -> int:
        """Width of keys, and of values."""
        return self.hidden // self.heads * self.kv_heads

    def config(self, **options: Any) -> Any:
        """The `LlamaConfig` of transformers to train a model of this shape, with `options` beside the sizes."""
        from transformers import LlamaConfig

        return LlamaConfig(
            vocab_size=self.vocab,
            hidden_size=self.hidden,
            intermediate_size=self.inner,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            num_key_value_heads=self.kv_heads,
            use_cache=False,
            **options,
        )

    def weights(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of each weight, as transformers has them, without tied embeddings."""
        hidden, inner, kv = self.hidden, self.inner, self.kv
        of_layer = {
            "self_attn.q_proj": (hidden, hidden),
            "self_attn.k_proj": (kv, hidden),
            "self_attn.v_proj": (kv, hidden),
            "self_attn.o_proj": (hidden, hidden),
            "mlp.gate_proj": (inner, hidden),
            "mlp.up_proj": (inner, hidden),
            "mlp.down_proj": (hidden, inner),
            "input_layernorm": (hidden,),
            "post_attention_layernorm": (hidden,),
        }
        layers = {
            f"model.layers.{layer}.{name}.weight": shape
            for layer in range(self.layers)
            for name, shape in of_layer.items()
        }
        embedding = {"model.embed_tokens.weight": (self.vocab, hidden)}
        return {**embedding, **layers, "model.norm.weight": (hidden,), "lm_head.weight": (self.vocab, hidden)}


# From the config.json of meta-llama/Llama-3.1-8B, Llama-2-13b-hf, Llama-2-70b-hf and Llama-3.1-405B.
LLAMAS = {
    name: LlamaShape(
        preset.hidden_size,
        preset.intermediate_size,
        preset.num_layers,
        preset.num_heads,
        preset.num_heads,
        preset.vocab_size or PAPERS_VOCAB_SIZE,
    )
    for name, preset in PRESETS.items()
} | {
    "8b": LlamaShape(4096, 14336, 32, 32, 8, 128_256),
    "13b": LlamaShape(5120, 13824, 40, 40, 40, 32_000),
    "70b": LlamaShape(8192, 28672, 80, 64, 8, 32_000),
    "405b": LlamaShape(16384, 53248, 126, 128, 8, 128_256),
}


Model: TypeAlias = nn.Module | str | Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class Source:
    """A model that has been looked up, to be planned any number of times.

    Attributes:
        name: for people.
        weights: a module, or shapes by name.
        llama: the sizes that activations follow from; None for other kinds of models.
    """

    name: str
    weights: nn.Module | Mapping[str, Sequence[int]]
    llama: LlamaShape | None


@dataclass(frozen=True)
class PlannedModel:
    """Weights as meta tensors, in param groups as `LDAdamW` takes them.

    Attributes:
        name: for people.
        groups: param groups with `params` and `param_names`.
        names: of the weights that are trained, in the model's order.
        frozen: weights that are not trained.
        llama: the sizes that activations follow from; None for other kinds of models.
    """

    name: str
    groups: list[dict[str, Any]]
    names: list[str]
    frozen: list[Tensor]
    llama: LlamaShape | None


def find_source(model: Model) -> Source:
    """Look a model up.

    Args:
        model: a module; the name of a Llama; ROWSxCOLUMNS:COUNT,...; a hub id or a folder with a config.json; or
            shapes by name.

    Raises:
        ValueError: the name is unknown, or its configuration cannot be read.
    """
    if isinstance(model, nn.Module):
        return Source(type(model).__name__, model, _llama_of(model))
    if not isinstance(model, str):
        return Source("shapes", model, None)
    if model in LLAMAS:
        return Source(model, LLAMAS[model].weights(), LLAMAS[model])
    if (listed := _listed_shapes(model)) is not None:
        return Source(model, listed, None)
    module = _module_on_meta(model)
    return Source(model, module, _llama_of(module))


def model_of(source: Source, *, rank: int | float | None, dtype: torch.dtype | None) -> PlannedModel:
    """The weights of a model.

    Args:
        rank: of low-rank weights.
        dtype: of the weights; None means float32 for shapes, and its own for a module.
    """
    if not isinstance(source.weights, nn.Module):
        named = [(key, _on_meta(shape, dtype or torch.float32)) for key, shape in source.weights.items()]
        return PlannedModel(source.name, [{"params": named}], list(source.weights), [], source.llama)
    groups = lowrank_param_groups(source.weights, rank=rank)
    frozen = [param for param in source.weights.parameters() if not param.requires_grad]
    return PlannedModel(
        source.name,
        [{**group, "params": list(_all_on_meta(group["params"], dtype))} for group in groups],
        [key for key, param in source.weights.named_parameters() if param.requires_grad],
        list(_all_on_meta(frozen, dtype)),
        source.llama,
    )


def _listed_shapes(text: str) -> dict[str, tuple[int, ...]] | None:
    try:
        sizes = listed_sizes(text)
    except ValueError as error:
        raise ValueError(f"the model {error}") from error
    if sizes is None:
        return None
    repeated = [(rows, columns) for rows, columns, count in sizes for _ in range(count)]
    return {f"matrices.{index}.weight": shape for index, shape in enumerate(repeated)}


def _all_on_meta(params: Iterable[Tensor], dtype: torch.dtype | None) -> Iterable[Parameter]:
    for param in params:
        yield _on_meta(param.shape, dtype if dtype and param.is_floating_point() else param.dtype)


def _on_meta(shape: Sequence[int], dtype: torch.dtype) -> Parameter:
    return Parameter(torch.empty(tuple(shape), dtype=dtype, device="meta"), requires_grad=dtype.is_floating_point)


def _llama_of(module: nn.Module) -> LlamaShape | None:
    """The sizes of a Llama or Mistral of transformers, whose layers are of the kind that activations are known for."""
    config = getattr(module, "config", None)
    if getattr(config, "model_type", None) not in ("llama", "mistral"):
        return None
    assert config is not None
    return LlamaShape(
        config.hidden_size,
        config.intermediate_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        config.vocab_size,
    )


def _module_on_meta(name: str) -> nn.Module:
    """The model of a hub id or of a folder with a config.json, without weights."""
    looks_local = Path(name).exists() or name.startswith((".", "/", "~"))
    if not looks_local and name.count("/") != 1:
        raise ValueError(
            f"unknown model {name!r}: expected {', '.join(LLAMAS)}, a list such as "
            "512x512:32,1376x512:16, a hub id with its owner such as FacebookAI/roberta-base, or a folder with a "
            "config.json"
        )
    try:
        from transformers import AutoConfig, AutoModelForCausalLM
    except ImportError as error:
        raise ValueError(f"the model {name!r} is read with transformers: pip install 'ldadam[train]'") from error
    try:
        config = AutoConfig.from_pretrained(name)
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(config)
    except (OSError, ValueError, KeyError) as error:
        reason = (str(error).strip().splitlines() or ["no message"])[0]
        raise ValueError(
            f"no configuration of the model {name!r}: {reason} (a hub id needs network or a cached config.json, a "
            "folder needs one inside)"
        ) from error

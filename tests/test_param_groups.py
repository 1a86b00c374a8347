"""Which weights of a model get a rank, which stay dense, and why."""

import os

import pytest
import torch

from builders import normal, parameter
from ldadam import LDAdamW, LDAdamWarning, describe, lowrank_param_groups
from ldadam.param_groups import dense_reason

os.environ.setdefault("HF_HUB_OFFLINE", "1")
SIZES = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4}


def llama(**options):
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2, intermediate_size=48, **options)
    return transformers.LlamaForCausalLM(config)


def gpt2():
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": 64, "n_positions": 16, "n_embd": 32, "n_layer": 1, "n_head": 4}
    return transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=2))


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**SIZES, intermediate_size=48, max_position_embeddings=16)
    return transformers.BertForMaskedLM(config)


def mixtral():
    transformers = pytest.importorskip("transformers")
    config = transformers.MixtralConfig(
        **SIZES, num_key_value_heads=2, intermediate_size=48, num_local_experts=3, num_experts_per_tok=2
    )
    return transformers.MixtralForCausalLM(config)


MODELS = {
    "llama": (
        llama,
        {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        {"model.embed_tokens.weight": "embedding", "lm_head.weight": "output head"},
    ),
    "llama with a tied head": (
        lambda: llama(tie_word_embeddings=True),
        {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"},
        {"model.embed_tokens.weight": "embedding"},
    ),
    "gpt2": (
        gpt2,
        {"c_attn", "c_proj", "c_fc"},
        {"transformer.wte.weight": "embedding", "transformer.wpe.weight": "embedding"},
    ),
    "bert": (
        bert,
        {"query", "key", "value", "dense"},
        {
            "bert.embeddings.word_embeddings.weight": "embedding",
            "bert.embeddings.position_embeddings.weight": "embedding",
            "bert.embeddings.token_type_embeddings.weight": "embedding",
            "cls.predictions.transform.dense.weight": "output head",
        },
    ),
    "mixtral": (
        mixtral,
        {"q_proj", "k_proj", "v_proj", "o_proj", "gate_up_proj", "down_proj"},
        {
            "model.embed_tokens.weight": "embedding",
            "lm_head.weight": "output head",
            "model.layers.0.mlp.gate.weight": "router",
        },
    ),
}


@pytest.mark.parametrize("by", ["groups", "names"])
@pytest.mark.parametrize("name", MODELS)
def test_a_transformer_is_split_as_expected(name, by):
    build, low_rank_layers, dense_matrices = MODELS[name]
    model = build()
    params = lowrank_param_groups(model, rank=4) if by == "groups" else model.named_parameters()
    rows = describe(LDAdamW(params, rank=4)).rows
    matrices = [row for row in rows if len(row.shape) >= 2]
    assert {row.name: row.reason for row in matrices if row.rank is None} == dense_matrices
    layers = {row.name.removesuffix(".weight").rpartition(".")[2] for row in matrices if row.rank == 4}
    assert layers == low_rank_layers
    assert {row.reason for row in rows if len(row.shape) < 2} == {"not a matrix"}
    assert len(rows) == len(list(model.parameters()))


def test_stacked_experts_are_a_batch_of_matrices():
    model = mixtral()
    optimizer = LDAdamW(lowrank_param_groups(model, rank=4))
    model(input_ids=torch.arange(32).reshape(2, 16), labels=torch.arange(32).reshape(2, 16)).loss.backward()
    optimizer.step()
    experts = model.model.layers[0].mlp.experts.down_proj
    assert optimizer.state[experts]["basis"].shape == (3, 32, 4)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("model.layers.0.self_attn.q_proj.lora_A.default.weight", "LoRA factor"),
        ("lora_B", "LoRA factor"),
        ("model.layers.0.mlp.gate_proj.weight", None),
        ("model.layers.0.mlp.gate.weight", "router"),
        ("blocks.3.moe.router.weight", "router"),
        ("encoder.LayerNorm.weight", "norm"),
        ("transformer.h.0.ln_1.weight", "norm"),
        ("model.layers.0.self_attn.q_norm.weight", "norm"),
        ("pos_embed", "embedding"),
        ("encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight", "embedding"),
        ("output.weight", "output head"),
        ("module.model.output.weight", "output head"),
        ("_orig_mod.lm_head.weight", "output head"),
        ("encoder.layer.0.attention.output.dense.weight", None),
        ("model.layers.0.attention.heads.weight", None),
        ("model.layers.0.mlp.shared_expert.up_proj.weight", None),
    ],
)
def test_a_name_says_why_a_parameter_is_dense(name, reason):
    assert dense_reason(name) == reason


class Wrapper(torch.nn.Module):
    """Hides the methods of the model within, as DistributedDataParallel does."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class OddlyNamed(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.lookup = torch.nn.Embedding(64, 16)
        self.body = torch.nn.Linear(16, 16)
        self.predictor = torch.nn.Linear(16, 64)

    def get_output_embeddings(self):
        return self.predictor


@pytest.mark.parametrize("wrap", [lambda model: model, Wrapper], ids=["bare", "wrapped"])
def test_modules_tell_what_names_do_not(wrap):
    low_rank, *_ = lowrank_param_groups(wrap(OddlyNamed()), rank=4)
    assert [name.removeprefix("module.") for name in low_rank["param_names"]] == ["body.weight"]


def by_rank(model, **options) -> dict:
    """Parameter names by rank; "default" where the group has none of its own."""
    ranks: dict = {}
    for group in lowrank_param_groups(model, **options):
        ranks.setdefault(group.get("rank", "default"), []).extend(group["param_names"])
    return ranks


def small_model() -> torch.nn.Module:
    return torch.nn.ModuleDict({"attn": torch.nn.Linear(32, 32), "mlp": torch.nn.Linear(32, 48)})


@pytest.mark.parametrize("target", ["attn|mlp", ["attn", "mlp"], r"\.weight$"], ids=str)
def test_target_modules_is_a_regular_expression_or_several(target):
    expected = {8: ["attn.weight", "mlp.weight"], None: ["attn.bias", "mlp.bias"]}
    assert by_rank(small_model(), rank=8, target_modules=target) == expected


def test_what_target_modules_does_not_find_is_dense():
    assert by_rank(small_model(), rank=8, target_modules="attn")[8] == ["attn.weight"]


@pytest.mark.parametrize(
    ("override", "rank"),
    [(12, 12), (0.5, 4), (2.0, 16), (0.01, 1), (None, None)],
    ids=["int", "half", "double", "1", "no"],
)
def test_rank_overrides_are_ranks_factors_or_none(override, rank):
    ranks = by_rank(small_model(), rank=8, rank_overrides={"mlp": override})
    assert "mlp.weight" in ranks[rank]
    assert ranks[8] == ["attn.weight"]


def test_a_factor_scales_a_fraction_too():
    assert 0.125 in by_rank(small_model(), rank=0.25, rank_overrides={"mlp": 0.5})


def test_the_first_override_that_is_found_counts_and_wins_over_names_but_not_over_vectors():
    model = torch.nn.ModuleDict({"lm_head": torch.nn.Linear(32, 64)})
    assert by_rank(model, rank=8, rank_overrides={"lm_head": 5, "lm": 6}) == {
        5: ["lm_head.weight"],
        None: ["lm_head.bias"],
    }


def test_a_factor_without_a_rank_is_refused():
    with pytest.raises(ValueError, match=r"the factor 0\.5, which needs rank="):
        lowrank_param_groups(small_model(), rank_overrides={"mlp": 0.5})


@pytest.mark.parametrize("options", [{"target_modules": ["attn", "atn"]}, {"rank_overrides": {"atn": 4}}], ids=str)
def test_a_pattern_that_is_in_no_name_is_refused(options):
    with pytest.raises(ValueError, match=r"pattern 'atn' is in no name of the 4 trainable parameters \(attn\.weight"):
        lowrank_param_groups(small_model(), rank=8, **options)


def test_without_a_rank_the_optimizers_default_counts():
    groups = lowrank_param_groups(small_model())
    assert "rank" not in groups[0]
    assert LDAdamW(groups, rank=8).param_groups[0]["rank"] == 8


def test_weight_decay_is_for_matrices():
    groups = lowrank_param_groups(small_model(), rank=8, weight_decay=0.1)
    decays = {name: group["weight_decay"] for group in groups for name in group["param_names"]}
    assert decays == {"attn.weight": 0.1, "mlp.weight": 0.1, "attn.bias": 0.0, "mlp.bias": 0.0}


@pytest.mark.parametrize("options", [{}, {"rank_overrides": {"q_proj": None}}, {"target_modules": "down_proj"}])
def test_a_dense_learning_rate_is_for_what_is_no_matrix_of_a_layer(options):
    """Whatever the rank of a matrix, none included; embeddings keep it with a rank, too."""
    model = llama()
    groups = lowrank_param_groups(model, rank=4, weight_decay=0.1, dense_lr=0.03, **options)
    optimizer = LDAdamW(groups, lr=1e-3)
    found = {name: group["lr"] for group in optimizer.param_groups for name in group["param_names"]}
    assert {name for name, lr in found.items() if lr == 1e-3} == {name for name in found if "proj" in name}
    assert set(found.values()) == {1e-3, 0.03} and len(found) == len(list(model.parameters()))
    given = {"rank_overrides": {"embed_tokens": 8}, "dense_lr": 0.03}
    (embedding,) = [group for group in lowrank_param_groups(model, rank=4, **given) if group["rank"] == 8]
    assert embedding["lr"] == 0.03 and embedding["param_names"] == ["model.embed_tokens.weight"]
    assert "lr" not in lowrank_param_groups(model, rank=4)[-1]
    with pytest.raises(ValueError, match=r"^dense_lr must be a finite number >= 0.*, got \(0, 3\)"):
        lowrank_param_groups(model, rank=4, dense_lr=(0, 3))


def test_frozen_parameters_are_left_out():
    model = small_model()
    model["mlp"].requires_grad_(False)
    assert by_rank(model, rank=8) == {8: ["attn.weight"], None: ["attn.bias"]}


def test_convolutions_are_low_rank_but_one_dimensional_ones():
    model = torch.nn.ModuleDict({"conv": torch.nn.Conv2d(8, 16, 3), "short": torch.nn.Conv1d(16, 16, 9)})
    assert by_rank(model, rank=4) == {4: ["conv.weight"], None: ["conv.bias", "short.weight", "short.bias"]}


def test_every_trainable_parameter_is_in_one_group():
    model = llama()
    grouped = [param for group in lowrank_param_groups(model, rank=8) for param in group["params"]]
    assert len(grouped) == len({id(param) for param in grouped})
    assert {id(param) for param in grouped} == {id(param) for param in model.parameters()}


def test_a_named_group_added_later_is_split_too():
    optimizer = LDAdamW([("first.weight", parameter(32, 32))], rank=4)
    optimizer.add_param_group({"params": [("x.weight", parameter(32, 32)), ("x.lora_A.weight", parameter(32, 32))]})
    assert [(group["param_names"], group["rank"]) for group in optimizer.param_groups[1:]] == [
        (["x.weight"], 4),
        (["x.lora_A.weight"], None),
    ]


def test_a_rank_too_large_for_a_matrix_is_said_and_described():
    groups = lowrank_param_groups(small_model(), rank=8, rank_overrides={"attn": 32})
    with pytest.warns(LDAdamWarning, match=r"1 of the 1 matrices .* rank=32 .* \(32, 32\)"):
        optimizer = LDAdamW(groups)
    reasons = {row.name: row.reason for row in describe(optimizer).rows}
    assert reasons["attn.weight"] == "a side does not exceed the rank"
    assert reasons["mlp.weight"] == "both sides exceed the rank"


def test_a_model_steps_with_its_groups():
    model = small_model()
    optimizer = LDAdamW(lowrank_param_groups(model, rank=8, weight_decay=0.1), lr=0.01)
    (model["mlp"](model["attn"](normal(4, 32)))).square().mean().backward()
    optimizer.step()
    assert {"basis" in optimizer.state[linear.weight] for linear in model.values()} == {True}

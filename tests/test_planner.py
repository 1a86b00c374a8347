"""A plan promises what a run then takes: state to the byte, peaks within tolerance, shards and traffic by formula."""

import gc
import math
import subprocess
import sys
import warnings

import pytest
import torch
from torch import nn
from torch.nn import Parameter

from builders import live_bytes, mixed_params, parameter, quiet
from ldadam import LDAdamWarning, lowrank_param_groups, pieces, plan
from ldadam.distributed.plan import Collective, reductions, shard_layout, shard_shape
from ldadam.error_buffer import ERROR_DTYPES
from ldadam.hyperparameters import resolve
from ldadam.layout import matrix_layout
from ldadam.live_bytes import LiveBytes
from ldadam.optimizer import LDAdamW, layout_of
from ldadam.planner.footprint import RESERVED_BYTES, Footprint, StateBytes
from ldadam.planner.models import LLAMAS
from ldadam.planner.step_peak import SeenAs, single_step_peak, step_peak
from ldadam.state import create_state
from tolerances import TOLERANCES

CPU, CUDA = torch.device("cpu"), torch.device("cuda")
HAS_CUDA = torch.cuda.is_available()
ALL_ERROR_DTYPES = [None, *ERROR_DTYPES]


def weights_of(model, *, dtype, device):
    return [
        (name, Parameter(torch.empty(shape, dtype=dtype, device=device)))
        for name, shape in LLAMAS[model].weights().items()
    ]


def primed_state_bytes(optimizer):
    """Bytes of the state of every weight; a step at lr 0 with zero gradients creates state, and nothing else."""
    for group in optimizer.param_groups:
        group["lr"] = 0.0
        for param in group["params"]:
            param.grad = torch.zeros_like(param)
    optimizer.step()
    return live_bytes(optimizer)


def planned(model, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", LDAdamWarning)
        return plan(model, device="cpu", **options)


@pytest.mark.parametrize("error_feedback", [True, False])
@pytest.mark.parametrize("error_dtype", ALL_ERROR_DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planned_state_is_live_state(dtype, error_dtype, error_feedback):
    options = {"rank": 32, "error_dtype": error_dtype, "error_feedback": error_feedback}
    live = primed_state_bytes(LDAdamW(weights_of("demo", dtype=dtype, device="cpu"), **options))
    assert planned("demo", dtype=dtype, **options).footprint.state.total == live


@pytest.mark.parametrize(("model", "rank"), [("demo", 7), ("demo", 0.25), ("demo", None), ("20m", 96), ("60m", 128)])
def test_planned_state_is_live_state_at_every_rank(model, rank):
    live = primed_state_bytes(quiet(weights_of(model, dtype=torch.bfloat16, device="cpu"), rank=rank))
    assert planned(model, rank=rank, dtype="bfloat16").footprint.state.total == live


@pytest.mark.parametrize("error_dtype", ALL_ERROR_DTYPES)
@pytest.mark.parametrize("model", ["130m", "350m", "1b", "7b", "8b", "13b", "70b"])
def test_planned_state_of_large_models_is_their_state_on_meta(model, error_dtype):
    optimizer = LDAdamW(weights_of(model, dtype=torch.bfloat16, device="meta"), rank=8, error_dtype=error_dtype)
    live = 0
    for index, group in enumerate(optimizer.param_groups):
        hyper = resolve(group, index)
        states = (create_state(param, layout_of(param, hyper), hyper) for param in group["params"])
        live += sum(value.nbytes for state in states for value in state.values())
    found = planned(model, rank=8, error_dtype=error_dtype, dtype="bfloat16", step_in_backward=True)
    assert found.footprint.state.total == live


def test_state_is_sorted_by_what_it_is_for():
    state = planned({"a.weight": (8, 12), "embed.weight": (20, 8)}, rank=2).footprint.state
    assert state == StateBytes(basis=4 * 8 * 2, moments=8 * 2 * 12, dense_moments=8 * 160, error_buffer=4 * 96, step=8)


def filled(params, *, dtype=torch.float32):
    for seed, param in enumerate(params):
        param.grad = parameter(*param.shape, seed=seed, dtype=dtype).detach()
    return params


def measured_peak(optimizer):
    """The larger peak of a first and a second step."""
    peaks = []
    for _ in range(2):
        with LiveBytes("cpu") as live:
            optimizer.step()
        peaks.append(live.peak - live.live)
    return max(peaks)


MATRICES = [(300, 400), (300, 400), (300, 400), (420, 280), (64, 500), (600,), (280, 290), (8, 40, 50)]


@pytest.mark.parametrize("error_dtype", ALL_ERROR_DTYPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("backend", "rank"), [("eager", 16), ("batched", 16), ("batched", 48)])
def test_planned_peak_of_a_step_is_the_measured_one(backend, rank, dtype, error_dtype):
    params = [parameter(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(MATRICES)]
    optimizer = quiet(filled(params, dtype=dtype), rank=rank, backend=backend, error_dtype=error_dtype, lr=1e-3)
    primed_state_bytes(optimizer)
    optimizer.param_groups[0]["lr"] = 1e-3
    filled(params, dtype=dtype)
    expected = step_peak(optimizer.param_groups, device=CPU)
    assert measured_peak(optimizer) == pytest.approx(expected, rel=TOLERANCES["planned peak"])


@pytest.fixture
def launches_leave_nothing(monkeypatch):
    """Triton's interpreter leaves the arguments of a launch in reference cycles; a GPU's launch does not."""
    pytest.importorskip("triton")
    from ldadam.backends.triton_launches import Kernel

    launch = Kernel.__getitem__

    def launch_and_collect(kernel, grid):
        return lambda *args, **constants: (launch(kernel, grid)(*args, **constants), gc.collect())

    monkeypatch.setattr(Kernel, "__getitem__", launch_and_collect)
    gc.collect()
    gc.freeze()  # so that each collection looks at what launches leave, and at nothing else
    yield
    gc.unfreeze()


@pytest.mark.parametrize("rank", [4, 40, 80])
def test_planned_peak_of_kernels_is_the_measured_one(rank, launches_leave_nothing):
    params = [parameter(*shape, seed=seed) for seed, shape in enumerate([(96, 130), (96, 130), (140, 90), (50,)])]
    optimizer = quiet(params, rank=rank, backend="triton")
    primed_state_bytes(optimizer)
    optimizer.param_groups[0]["lr"] = 1e-3
    filled(params)
    expected = step_peak(optimizer.param_groups, device=CPU)
    assert measured_peak(optimizer) == pytest.approx(expected, rel=TOLERANCES["planned peak"])


WITHOUT_TRITON = """
import sys
sys.modules["triton"] = None
from ldadam import plan
planned = plan("1b", rank=64, error_dtype="int8", dtype="bfloat16", step_in_backward=True)
print(planned.footprint.total, planned.backend)
"""


@pytest.mark.skipif(HAS_CUDA, reason="a plan for a device of this machine is for what is installed")
def test_a_plan_for_a_device_elsewhere_does_not_depend_on_what_is_installed_here():
    expected = plan("1b", rank=64, error_dtype="int8", dtype="bfloat16", step_in_backward=True)
    printed = subprocess.run([sys.executable, "-c", WITHOUT_TRITON], capture_output=True, text=True, check=True).stdout
    total, backend = printed.split(maxsplit=1)
    assert int(total) == expected.footprint.total
    assert backend.strip() == expected.backend and backend.startswith("triton: CUDA, and Triton, as torch for CUDA")


def test_planned_peak_of_many_equal_matrices_is_the_measured_one():
    """Several chunks: the peak stops growing with the number of matrices."""
    params = filled([parameter(256, 300, seed=seed) for seed in range(12)])
    optimizer = quiet(params, rank=64, backend="batched")
    expected = step_peak(optimizer.param_groups, device=CPU)
    assert expected == step_peak([{**optimizer.param_groups[0], "params": params * 4}], device=CPU)
    primed_state_bytes(optimizer)
    optimizer.param_groups[0]["lr"] = 1e-3
    filled(params)
    assert measured_peak(optimizer) == pytest.approx(expected, rel=TOLERANCES["planned peak"])


@pytest.mark.parametrize("stochastic_rounding", [True, False])
@pytest.mark.parametrize("error_dtype", ["bfloat16", "int8", "int4"])
def test_planned_peak_of_matrices_of_many_pieces_is_the_measured_one(error_dtype, stochastic_rounding, monkeypatch):
    """And it has one copy of the matrix at most: that of A, where E is in codes or its dtype is not the product's."""
    monkeypatch.setattr(pieces, "PIECE", 10_000)
    params = filled([parameter(900, 500, dtype=torch.bfloat16)], dtype=torch.bfloat16)
    options = {"error_dtype": error_dtype, "stochastic_rounding": stochastic_rounding}
    optimizer = quiet(params, rank=4, backend="batched", **options)
    expected = step_peak(optimizer.param_groups, device=CPU)
    primed_state_bytes(optimizer)
    optimizer.param_groups[0]["lr"] = 1e-3
    filled(params, dtype=torch.bfloat16)
    assert measured_peak(optimizer) == pytest.approx(expected, rel=TOLERANCES["planned peak"])
    assert expected < 1.5 * 4 * params[0].numel()


def test_a_parameter_alone_has_the_peak_of_a_step_in_backward():
    params = mixed_params()
    optimizer = quiet(params, rank=4, backend="batched")
    alone = [step_peak([{**optimizer.param_groups[0], "params": [param]}], device=CPU) for param in params]
    assert single_step_peak(optimizer.param_groups, device=CPU) == max(alone)


def test_sixteen_bit_buffers_are_corrected_in_place_on_cuda_only():
    group = [{**LDAdamW([parameter(600, 800, dtype=torch.bfloat16)], backend="batched").param_groups[0]}]
    assert step_peak(group, device=CPU) >= 4 * 600 * 800 > step_peak(group, device=CUDA)


def test_compressed_dense_gradients_stay_until_the_step():
    shapes = {"wide": (120, 200), "tall": (300, 40), "vector": (50,)}
    settings = {"rank": 4, "dtype": "float32", "sharding": "compressed", "step_in_backward": True}
    alone, shared = (plan(shapes, devices=devices, **settings).footprint.gradients for devices in (1, 2))
    assert (alone, shared) == (4 * 120 * 200, 4 * (120 * 200 + 50))


def test_planning_for_cuda_leaves_nothing_behind():
    with SeenAs(CUDA):
        assert torch.zeros(3, device=CUDA).is_cuda
    planned("96x130:2", rank=4)
    plan("96x130:2", rank=4, device="cuda")
    params = filled([parameter(96, 130)])
    optimizer = LDAdamW(params, rank=4)
    optimizer.step()
    assert {value.device for value in optimizer.state[params[0]].values()} == {CPU}
    assert params[0].isfinite().all()


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("kv_heads", "vocab", "layers"), [(4, 500, 3), (2, 500, 3), (4, 8000, 2), (4, 500, 6)])
def test_estimated_activations_are_those_of_a_real_llama(kv_heads, vocab, layers, dtype, checkpointing):
    model = tiny_llama(kv_heads=kv_heads, vocab=vocab, layers=layers).to(dtype)
    if checkpointing:
        model.gradient_checkpointing_enable()
    for param in model.parameters():
        param.grad = torch.zeros_like(param)
    tokens = torch.randint(vocab, (2, 128))
    with LiveBytes("cpu") as live:
        outputs = model(input_ids=tokens, labels=tokens)
        outputs.loss.backward()
    found = planned(model, rank=8, batch=2, seq=128, checkpointing=checkpointing).footprint.activations
    assert found == pytest.approx(live.peak, rel=TOLERANCES["activation estimate"])


def tiny_llama(*, kv_heads=4, vocab=500, layers=2):
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(tiny_config(LlamaConfig, kv_heads=kv_heads, vocab=vocab, layers=layers))


def tiny_config(config_class, *, kv_heads=4, vocab=500, layers=2):
    return config_class(
        vocab_size=vocab,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=128,
        use_cache=False,
    )


def test_activations_of_unknown_models_are_not_estimated():
    found = planned(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 48)), rank=8, batch=1, seq=16)
    assert found.footprint.activations is None
    assert found.footprint.total > 0


PUBLISHED_COUNTS = {
    "7b": 6_738_415_616,
    "8b": 8_030_261_248,
    "13b": 13_015_864_320,
    "70b": 68_976_648_192,
    "405b": 405_853_388_800,
}


@pytest.mark.parametrize("model", PUBLISHED_COUNTS)
def test_large_llamas_have_as_many_weights_as_published(model):
    assert sum(math.prod(shape) for shape in LLAMAS[model].weights().values()) == PUBLISHED_COUNTS[model]


def test_names_and_shapes_are_those_of_transformers():
    model = tiny_llama(kv_heads=2)
    found = planned(model, rank=8)
    by_name = {name: tuple(param.shape) for name, param in model.named_parameters()}
    assert planned(by_name, rank=8).footprints == found.footprints
    from ldadam.planner.models import find_source

    assert find_source(model).llama.weights() == by_name


def test_a_module_is_planned_as_its_optimizer_is_built():
    model = nn.Sequential(nn.Embedding(100, 64), nn.Linear(64, 96), nn.Conv2d(32, 48, 3), nn.LayerNorm(96))
    model[3].weight.requires_grad_(False)
    options = {"rank": 16, "proj_type": "right", "error_dtype": "bfloat16"}
    live = primed_state_bytes(LDAdamW(lowrank_param_groups(model, rank=16), **options))
    found = planned(model, **options).footprint
    assert found.state.total == live
    assert found.weights == sum(param.nbytes for param in model.parameters())
    assert found.gradients == found.weights - model[3].weight.nbytes


def test_a_folder_with_a_configuration_is_planned(tmp_path):
    from transformers import LlamaConfig

    tiny_config(LlamaConfig, kv_heads=2).save_pretrained(tmp_path)
    options = {"rank": 8, "dtype": "bfloat16", "batch": 1, "seq": 32}
    found, expected = planned(str(tmp_path), **options), planned(tiny_llama(kv_heads=2), **options)
    assert found.footprints == expected.footprints


REFUSED = {
    "unknown model '6b': expected demo": {"model": "6b"},
    "zero: 8x0:2": {"model": "8x0:2"},
    "no configuration of the model './nowhere'": {"model": "./nowhere"},
    "dtype must be a floating-point dtype": {"dtype": "int32"},
    "optimizer must be one of ldadamw, adamw": {"optimizer": "sgd"},
    "sharding must be one of ddp, fsdp, compressed": {"sharding": "zero"},
    "devices must be at least 1": {"devices": 0},
    "batch and seq are given together": {"batch": 1},
    "error_dtype must be None": {"error_dtype": "int5"},
    "step_in_backward would see local gradients": {"devices": 2, "sharding": "ddp", "step_in_backward": True},
    "compressed reduces LDAdamW's factors": {"devices": 2, "sharding": "compressed", "optimizer": "galore"},
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_what_cannot_be_is_refused(sentence, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="^.*" + sentence):
        plan(**{"model": "demo", **REFUSED[sentence]})


def test_the_total_has_what_is_alive_together():
    sizes = {"weights": 10, "gradients": 8, "state": StateBytes(basis=5), "step_peak": 3, "messages": 1}
    sizes |= {"activations": 20, "gathered": 2}
    assert Footprint("ldadamw", **sizes, step_in_backward=False).total == 23 + 22
    assert Footprint("ldadamw", **sizes, step_in_backward=True).total == 23 + 22 + 4


def test_a_card_needs_room_for_cuda():
    def footprint(total):
        return Footprint("adamw", total, 0, StateBytes(), None, 0, None, 0, False)

    assert footprint(24 * 2**30 - RESERVED_BYTES).cards == (24, 40, 80, 141)
    assert footprint(24 * 2**30 - RESERVED_BYTES + 1).cards == (40, 80, 141)


def test_one_gradient_is_alive_when_parameters_step_in_backward():
    ordinary = planned("demo", rank=8).footprint
    stepped = planned("demo", rank=8, step_in_backward=True).footprint
    assert ordinary.gradients == ordinary.weights
    assert stepped.gradients == 4 * 4096 * 128
    assert stepped.step_peak <= ordinary.step_peak
    assert stepped.state == ordinary.state


def test_shards_are_rounded_up():
    assert shard_shape((10, 7), 4) == (3, 7)
    assert shard_shape((), 4) == ()
    tall = matrix_layout((10, 7), rank=2, proj_type="std")
    wide = matrix_layout((7, 10), rank=2, proj_type="std")
    stack = matrix_layout((5, 7, 10), rank=2, proj_type="std")
    assert shard_layout(tall, 4).state_shapes() == {"exp_avg": (2, 3), "exp_avg_sq": (2, 3), "basis": (7, 2)}
    assert shard_layout(wide, 4).state_shapes() == {"exp_avg": (2, 10), "exp_avg_sq": (2, 10), "basis": (2, 2)}
    assert shard_layout(stack, 4).state_shapes()["basis"] == (2, 7, 2)
    assert shard_layout(stack, 4).shape == (2, 7, 10)


def test_fsdp_divides_weights_gradients_and_state():
    whole = planned("60m", rank=128, dtype="bfloat16").footprint
    shard = planned("60m", rank=128, dtype="bfloat16", devices=8).footprint
    uneven = planned("60m", rank=128, dtype="bfloat16", devices=7).footprint
    for name in ("weights", "gradients"):
        assert 8 * getattr(shard, name) == getattr(whole, name)
        assert 7 * getattr(uneven, name) > getattr(whole, name)
    for kind in ("dense_moments", "error_buffer"):
        assert 8 * getattr(shard.state, kind) == getattr(whole.state, kind)
    for kind in ("basis", "moments"):
        assert getattr(whole.state, kind) / 8 < getattr(shard.state, kind) < getattr(whole.state, kind)
    assert shard.gathered > 0 == whole.gathered


@pytest.mark.parametrize("devices", [1, 8, 1024])
def test_the_largest_model_is_planned_on_many_devices(devices):
    found = plan("405b", rank=256, dtype="bfloat16", devices=devices, batch=1, seq=4096, checkpointing=True)
    assert found.footprint.weights == pytest.approx(found.num_weights * 2 / devices, rel=1e-2)
    assert (141 in found.footprint.cards) == (devices > 8)


def test_compressed_data_parallelism_sends_three_factors():
    tall = matrix_layout((30, 20), rank=4, proj_type="std")
    assert sum(reductions(tall, "compressed").values()) == 4 * (2 * 30 + 20)
    assert reductions(tall, "ddp") == {}
    compressed = planned("7b", rank=32, dtype="bfloat16", devices=8, sharding="compressed", step_in_backward=True)
    ddp = planned("7b", rank=32, dtype="bfloat16", devices=8, sharding="ddp", optimizer="adamw")
    matrices = [shape for shape in LLAMAS["7b"].weights().values() if len(shape) == 2 and 32_000 not in shape]
    factors = sum(32 * 4 * (2 * max(shape) + min(shape)) for shape in matrices)
    assert sum(each.num_bytes for each in compressed.traffic[1:]) == factors
    assert [each.count for each in compressed.traffic[1:]] == [224, 224, 224]
    assert compressed.sent_bytes < ddp.sent_bytes / 10


def test_a_stack_of_experts_is_divided_without_reductions():
    stack = matrix_layout((8, 20, 30), rank=4, proj_type="std")
    assert reductions(stack, "fsdp") == {}
    assert sum(reductions(stack, "compressed").values()) == 8 * 4 * (2 * 30 + 20)


def test_rings_send_each_byte_once_or_twice():
    assert Collective("all_reduce", "gradients", 1000, 1).sent_bytes(4) == 1500
    assert Collective("all_gather", "weights", 1000, 1).sent_bytes(4) == 750
    assert Collective("reduce_scatter", "gradients", 1000, 1).sent_bytes(1) == 0


def test_fsdp_gathers_weights_twice_and_reduces_gradients_once():
    found = planned("7b", rank=32, dtype="bfloat16", devices=8, optimizer="adamw")
    total = found.num_weights * 2
    head = 2 * 2 * 32_000 * 4096 + 2 * 4096
    assert [each.num_bytes for each in found.traffic] == [total, total - head, total]
    assert [each.count for each in found.traffic] == [33, 32, 33]


def test_a_message_has_one_factor_of_all_matrices_or_of_one():
    options = {"rank": 16, "devices": 2, "sharding": "compressed"}
    assert planned("demo", **options).footprint.messages == 4 * 4 * 16 * (4 * 128 + 3 * 352)
    assert planned("demo", **options, step_in_backward=True).footprint.messages == 4 * 16 * 352


def test_one_device_sends_nothing():
    assert planned("demo", rank=8).traffic == ()


def test_state_of_peers_is_what_they_say():
    found = {each.optimizer: each.state for each in planned("demo", rank=16, dtype="bfloat16").footprints}
    numbers = planned("demo", rank=16).num_weights
    assert found["adamw"].dense_moments == 2 * 2 * numbers
    assert found["adamw4bit"].total < found["adamw8bit"].total < found["adamw"].total
    assert found["galore"].moments == found["apollo"].moments
    assert 2 * found["galore"].basis == found["ldadamw"].basis


@pytest.mark.parametrize("name", ["adamw", "adamw8bit", "adamw4bit", "galore", "apollo"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_planned_state_of_peers_is_their_live_state(name, dtype):
    from ldadam.bench.cost import state_bytes
    from ldadam.bench.models import find_models
    from ldadam.bench.subjects import find_entry
    from ldadam.bench.weights import make_weights

    model = "64x256:2,256x64:1,50x70:1"
    weights = make_weights(find_models(model, all_parameters=False)[0], device=CPU, dtype=dtype)
    try:
        stepper = find_entry(name).build(weights, 16)
    except ImportError as error:
        pytest.skip(f"{name} is not installed: {error}")
    stepper.step()
    (state,) = [each.state for each in planned(model, rank=16, dtype=dtype).footprints if each.optimizer == name]
    assert state.total == state_bytes(stepper)


def test_a_plan_leaves_nothing_behind_that_a_step_would_use():
    """Tables of numbers are cached, and those of a plan are meta tensors that stand for another device."""
    pytest.importorskip("triton")
    options = {"rank": 4, "backend": "triton", "stochastic_rounding": True, "capturable": True}
    planned, stepped = (filled([parameter(40, 64, dtype=torch.float16)], dtype=torch.float16) for _ in range(2))
    step_peak(quiet(planned, **options).param_groups, device=CPU)
    optimizer = quiet(stepped, **options)
    for _ in range(2):  # the first is the page's
        optimizer.step()
    assert stepped[0].isfinite().all()

"""Every backend equals the page: from one state, one step; then many. And what a fast step must not do."""

from importlib import import_module

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from builders import (
    assert_same_state,
    copies,
    distance,
    grads_of,
    mixed_params,
    normal,
    parameter,
    quiet,
    run,
    take_step,
)
from ldadam import LDAdamW, describe, error_buffer, pieces, subspace
from ldadam.backends import batched
from ldadam.backends.matrices import chunks
from ldadam.backends.update import ParamUpdate
from ldadam.hyperparameters import NAMES, Hyperparameters
from ldadam.layout import matrix_dims, matrix_layout
from ldadam.quantization import BLOCK
from ldadam.state import create_state
from tolerances import TOLERANCES

pytest.importorskip("triton")
HAS_CUDA = torch.cuda.is_available()
DEVICE = "cuda" if HAS_CUDA else "cpu"

# Wide, tall, square, odd; a stack of experts; a convolution; vectors of two sizes.
SHAPES = [(40, 64), (64, 40), (40, 64), (48, 48), (63, 100), (3, 20, 32), (8, 4, 3, 3), (5,), (40,)]
OPTIONS = {
    "defaults": {},
    "weight decay": {"weight_decay": 0.1},
    "no error feedback": {"error_feedback": False},
    "kept subspace": {"update_interval": 3},
    "maximize": {"maximize": True},
    "tensor lr": {"lr": torch.tensor(1e-2)},
    "float32 buffer": {"error_dtype": "float32"},
    "svd": {"proj_method": "svd"},
    "capturable": {"capturable": True},
    "skip_nonfinite": {"skip_nonfinite": True, "weight_decay": 0.1},
    "int8 buffer": {"error_dtype": "int8"},
    "int4 buffer": {"error_dtype": "int4", "weight_decay": 0.1},
    "int4 buffer, maximize": {"error_dtype": "int4", "maximize": True, "proj_type": "reverse_std"},
    "int8 buffer, kept subspace": {"error_dtype": "int8", "update_interval": 3},
    "int4 buffer, skip_nonfinite": {"error_dtype": "int4", "skip_nonfinite": True},
    "stochastic rounding": {"stochastic_rounding": True},
    "stochastic rounding, int8 buffer": {"stochastic_rounding": True, "error_dtype": "int8", "capturable": True},
    "residual": {"scaled_residual": True, "weight_decay": 0.1},
    "residual, maximize, kept subspace": {"scaled_residual": True, "maximize": True, "update_interval": 3},
    "residual, skip_nonfinite": {"scaled_residual": True, "skip_nonfinite": True, "proj_type": "reverse_std"},
    "residual, stochastic rounding": {"scaled_residual": True, "stochastic_rounding": True, "error_dtype": "int4"},
}
# Triton's interpreter multiplies bfloat16 numbers as if they were integers, so that float16 stands in for it on CPUs.
CASES = [
    *(("batched", dtype) for dtype in (torch.float64, torch.float32, torch.bfloat16)),
    *(("triton", dtype) for dtype in (torch.float32, torch.bfloat16 if HAS_CUDA else torch.float16)),
]
# Under Triton's interpreter a step takes seconds: in 16 bits these alone, and all of them with the slow tests.
IN_HALF_PRECISION = ("defaults", "int8 buffer", "stochastic rounding", "residual, stochastic rounding")


def cases_of_one_step():
    """Every option with every backend and dtype."""

    def is_slow(backend, dtype, options):
        return backend == "triton" and dtype.itemsize == 2 and options not in IN_HALF_PRECISION

    every = [(*case, options) for case in CASES for options in OPTIONS]
    return [pytest.param(*one, marks=pytest.mark.slow if is_slow(*one) else ()) for one in every]


def params_of(dtype: torch.dtype, shapes=SHAPES) -> list[torch.nn.Parameter]:
    made = [parameter(*shape, seed=seed, dtype=dtype) for seed, shape in enumerate(shapes)]
    return [torch.nn.Parameter(param.detach().to(DEVICE)) for param in made]


def assert_close(fast: LDAdamW, page: LDAdamW, *, tolerance: float) -> None:
    """Weights and state, each relative to its norm; a basis is unique up to signs, so what it spans is compared."""
    pairs = zip(_all_params(fast), _all_params(page), strict=True)
    for index, (param, expected) in enumerate(pairs):
        assert distance(param, expected) <= tolerance, f"parameter {index}"
        state, reference = fast.state[param], page.state[expected]
        assert state.keys() == reference.keys()
        for key in state.keys() & {"step", "num_skipped"}:
            assert state[key].item() == reference[key].item()
        assert distance(state["exp_avg_sq"], reference["exp_avg_sq"]) <= tolerance, f"exp_avg_sq of parameter {index}"
        if "error_scale" in state:
            assert_close_in_levels(state, reference, param.shape, tolerance=tolerance)
        elif "error_buffer" in state:
            assert distance(state["error_buffer"], reference["error_buffer"]) <= tolerance, f"E of parameter {index}"
        if "basis" in state:
            momentum = state["basis"] @ state["exp_avg"]
            assert distance(momentum, reference["basis"] @ reference["exp_avg"]) <= tolerance, f"parameter {index}"


def assert_close_in_levels(state: dict, reference: dict, shape: torch.Size, *, tolerance: float) -> None:
    """As close as entries of E that differ by `tolerance` of their norm, and are then rounded, must be."""
    batch, rows, cols = matrix_dims(shape)
    error, expected = (
        error_buffer.read(some, shape, torch.float64).reshape(*batch, rows, cols) for some in (state, reference)
    )
    scales = reference["error_scale"].double().repeat_interleave(BLOCK, dim=-1)[..., : expected.shape[-1]]
    scales = scales.clamp_min(torch.finfo(torch.bfloat16).tiny)
    off = (error - expected).abs() / scales
    # What lies on a border may fall on either side; beside that, a scale on one moves the largest code by half a level.
    assert off.max() <= 1.5
    # An entry that is d levels off falls on the other side of a border with a chance of d.
    share = tolerance * (expected / scales).square().mean().sqrt()
    assert (off > 0.5).double().mean() <= share + 2 / off.numel()


def _all_params(optimizer: LDAdamW) -> list[torch.Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def tolerance_of(dtype: torch.dtype, *, num_steps: int) -> float:
    return TOLERANCES[f"backend, {str(dtype).removeprefix('torch.')}, {'one step' if num_steps == 1 else 'many steps'}"]


def pair(backend: str, dtype: torch.dtype, options: dict, shapes=SHAPES) -> tuple[LDAdamW, LDAdamW]:
    options = {"lr": 1e-2, "rank": 4, **options}
    page = quiet(params_of(dtype, shapes), backend="eager", **options)
    return quiet(params_of(dtype, shapes), backend=backend, **options), page


def step_both(fast: LDAdamW, page: LDAdamW, steps, *, bad=()) -> None:
    for number, grads in enumerate(steps):
        grads = [grad.to(DEVICE) for grad in grads]
        if number in bad:
            grads[1].view(-1)[7] = grads[5].view(-1)[0] = float("nan")
        take_step(fast, _all_params(fast), grads)
        take_step(page, _all_params(page), grads)


def start_from_the_state_of_the_page(fast: LDAdamW, page: LDAdamW, steps) -> None:
    """Let the page take some steps, and give its weights and state to the other one."""
    backend = fast.param_groups[0]["backend"]
    for grads in steps:
        take_step(page, _all_params(page), [grad.to(DEVICE) for grad in grads])
    for param, other in zip(_all_params(fast), _all_params(page), strict=True):
        param.data.copy_(other)
    fast.load_state_dict(page.state_dict())
    fast.param_groups[0]["backend"] = backend


@pytest.mark.parametrize(("backend", "dtype", "options"), cases_of_one_step())
def test_one_step_from_the_same_state_equals_the_page(backend, dtype, options):
    fast, page = pair(backend, dtype, OPTIONS[options])
    steps = grads_of(params_of(dtype), 4)
    start_from_the_state_of_the_page(fast, page, steps[:3])
    step_both(fast, page, steps[3:])
    assert_close(fast, page, tolerance=tolerance_of(dtype, num_steps=1))


@pytest.mark.parametrize(
    "options", ["weight decay", "int4 buffer, maximize", "stochastic rounding, int8 buffer", "residual"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_batched_step_of_matrices_in_many_pieces_equals_the_page(dtype, options, monkeypatch):
    fast, page = pair("batched", dtype, OPTIONS[options])
    steps = grads_of(params_of(dtype), 2)
    start_from_the_state_of_the_page(fast, page, steps[:1])
    take_step(page, _all_params(page), [grad.to(DEVICE) for grad in steps[1]])
    monkeypatch.setattr(pieces, "PIECE", 200)
    take_step(fast, _all_params(fast), [grad.to(DEVICE) for grad in steps[1]])
    assert_close(fast, page, tolerance=tolerance_of(dtype, num_steps=1))


# Codes are compared over many steps in float64 alone: with less precision, some entry soon falls on the other side of a
# rounding border, and from there on the two are different runs.
MANY_STEPS = [
    (dtype, options)
    for dtype in (torch.float64, torch.float32, torch.bfloat16)
    for options in OPTIONS
    if dtype == torch.float64 or OPTIONS[options].get("error_dtype") not in ("int8", "int4")
]


@pytest.mark.parametrize(("dtype", "options"), MANY_STEPS)
def test_many_batched_steps_equal_the_page(dtype, options):
    fast, page = pair("batched", dtype, OPTIONS[options])
    step_both(fast, page, grads_of(params_of(dtype), 12), bad=(3, 4) if options == "skip_nonfinite" else ())
    tolerance = tolerance_of(dtype, num_steps=12)
    if dtype == torch.float64 and options == "float32 buffer":
        tolerance = TOLERANCES["backend, float64 with a float32 buffer, many steps"]
    assert_close(fast, page, tolerance=tolerance)


@pytest.mark.parametrize(("backend", "dtype"), [case for case in CASES if case[1].itemsize == 2])
@pytest.mark.parametrize("error_dtype", [None, "int4"])
def test_weights_are_rounded_by_the_chance_of_the_page(backend, dtype, error_dtype):
    """All but those whose chance lies on a border; by other chances, a third would differ."""
    fast, page = pair(backend, dtype, {"stochastic_rounding": True, "error_dtype": error_dtype})
    steps = grads_of(params_of(dtype), 2)
    start_from_the_state_of_the_page(fast, page, steps[:1])
    step_both(fast, page, steps[1:])
    differ = [
        (param != other).double().mean() for param, other in zip(_all_params(fast), _all_params(page), strict=True)
    ]
    assert max(differ) <= TOLERANCES["backend, share of weights rounded differently"]


@pytest.mark.parametrize("error_dtype", ["int8", "int4"])
def test_a_step_that_triton_refuses_changes_no_bit_of_a_buffer_in_codes(error_dtype):
    fast, _ = pair("triton", torch.float32, {"error_dtype": error_dtype, "skip_nonfinite": True})
    params = _all_params(fast)
    steps = [[grad.to(DEVICE) for grad in grads] for grads in grads_of(params_of(torch.float32), 3)]
    run(fast, params, steps[:2])
    before = [{key: value.clone() for key, value in fast.state[param].items()} for param in params]
    run(fast, params, [[torch.full_like(grad, torch.nan) for grad in steps[2]]])
    for param, state in zip(params, before, strict=True):
        assert fast.state[param]["num_skipped"] == 1
        for key in state.keys() - {"num_skipped"}:
            torch.testing.assert_close(fast.state[param][key], state[key], rtol=0, atol=0)


@pytest.mark.parametrize("backend", ["batched", "triton"])
def test_a_block_of_a_dense_parameter_is_rounded_by_the_chance_of_the_whole(backend):
    """As where ranks share it: the noise of an entry is that of its place in the whole."""
    dtype = torch.bfloat16 if HAS_CUDA else torch.float16
    hyper = Hyperparameters(stochastic_rounding=True, rank=None)
    whole, grad = (normal(40, 64).to(DEVICE, dtype) for _ in range(2))
    moved = {}
    for name, first, last in (("whole", 0, 40), ("block", 24, 40)):
        param = whole[first:last].clone()
        update = ParamUpdate(
            param, grad[first:last], create_state(param, None, hyper), 1.0, hyper, first_entry=first * 64, number=3
        )
        module = import_module(f"ldadam.backends.{'eager' if name == 'whole' else backend}")
        module.dense_step_([update])
        moved[name] = param
    assert torch.equal(moved["block"], moved["whole"][24:])


def slow(*cases):
    """They take seconds each under Triton's interpreter, and cases like them are tested all the same."""
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


@pytest.mark.parametrize("options", ["kept subspace", *slow("weight decay", "skip_nonfinite")])
def test_many_triton_steps_equal_the_page(options):
    fast, page = pair("triton", torch.float32, OPTIONS[options])
    step_both(fast, page, grads_of(params_of(torch.float32), 5), bad=(3,) if options == "skip_nonfinite" else ())
    assert_close(fast, page, tolerance=tolerance_of(torch.float32, num_steps=5))


@pytest.mark.parametrize("rank", [1, 5, 16, 33])
@pytest.mark.parametrize("backend", ["batched", "triton"])
def test_every_rank_equals_the_page(backend, rank):
    shapes = [(64, 96), (96, 64), (35, 70)]
    fast, page = pair(backend, torch.float32, {"rank": rank}, shapes)
    step_both(fast, page, grads_of(params_of(torch.float32, shapes), 3))
    assert_close(fast, page, tolerance=tolerance_of(torch.float32, num_steps=3))


@pytest.mark.parametrize("rank", [20, *slow(1)])
@pytest.mark.parametrize("error_dtype", ["int8", "int4"])
def test_codes_in_several_tiles_and_with_odd_ends_equal_the_page(error_dtype, rank):
    """Rows longer than a block and than a tile, odd ones, and both orders of the projected side."""
    shapes = [(70, 193), (193, 70), (65, 129), (150, 67)]
    fast, page = pair("triton", torch.float32, {"rank": rank, "error_dtype": error_dtype}, shapes)
    steps = grads_of(params_of(torch.float32, shapes), 2)
    start_from_the_state_of_the_page(fast, page, steps[:1])
    assert all(triton_suits(param, fast.state[param], fast.param_groups[0]) for param in _all_params(fast))
    step_both(fast, page, steps[1:])
    assert_close(fast, page, tolerance=tolerance_of(torch.float32, num_steps=1))


@pytest.mark.parametrize(("backend", "dtype"), CASES)
def test_the_range_finder_s_first_step_equals_the_page(backend, dtype, monkeypatch):
    monkeypatch.setattr(subspace, "SVD_MAX_SIDE", 8)
    fast, page = pair(backend, dtype, {})
    step_both(fast, page, grads_of(params_of(dtype), 1))
    assert_close(fast, page, tolerance=tolerance_of(dtype, num_steps=1))


@pytest.mark.parametrize("backend", ["batched", "triton"])
def test_late_gradients_and_a_zero_gradient_equal_the_page(backend):
    fast, page = pair(backend, torch.float32, {})
    for number, grads in enumerate(grads_of(params_of(torch.float32), 5)):
        some = [None if number < index % 3 else grad.to(DEVICE) for index, grad in enumerate(grads)]
        some[0] = torch.zeros_like(grads[0]).to(DEVICE) if number == 2 else some[0]
        take_step(fast, _all_params(fast), some)
        take_step(page, _all_params(page), some)
    assert_close(fast, page, tolerance=tolerance_of(torch.float32, num_steps=5))


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_steps_equal_the_page_and_a_schedule_does_not_recompile(dtype):
    shapes = [(40, 64), (64, 40), (3, 20, 32), (5,)]
    fast, page = pair("compiled", dtype, {"weight_decay": 0.1}, shapes)
    steps = grads_of(params_of(dtype, shapes), 6)
    step_both(fast, page, steps[:2])
    with torch._dynamo.config.patch(error_on_recompile=True):
        for number, grads in enumerate(steps[2:]):
            for optimizer in (fast, page):
                optimizer.param_groups[0] |= {"lr": 1e-2 / (1 + number), "betas": (0.9, 0.95)}
            step_both(fast, page, [grads])
    assert_close(fast, page, tolerance=tolerance_of(dtype, num_steps=6))


@pytest.mark.slow
@pytest.mark.parametrize("options", ["int4 buffer", "stochastic rounding, int8 buffer"])
def test_a_compiled_step_with_a_buffer_in_codes_equals_the_page(options):
    shapes = [(40, 64), (64, 40), (3, 20, 32), (5,)]
    fast, page = pair("compiled", torch.bfloat16, OPTIONS[options], shapes)
    steps = grads_of(params_of(torch.bfloat16, shapes), 3)
    start_from_the_state_of_the_page(fast, page, steps[:2])
    step_both(fast, page, steps[2:])
    assert_close(fast, page, tolerance=tolerance_of(torch.bfloat16, num_steps=1))


class Synchronisations(TorchDispatchMode):
    """Counts what would make the host wait for a device: values read, and shapes that depend on values."""

    NAMES = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "unique", "masked_select")

    def __init__(self):
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if any(func.__name__.startswith(f"{name}.") for name in self.NAMES):
            self.seen.append(func.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "options",
    [
        {"capturable": True},
        {"skip_nonfinite": True, "capturable": True},
        {"error_dtype": "int4", "capturable": True},
        {"stochastic_rounding": True, "capturable": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("backend", ["eager", "batched"])
def test_no_value_is_read_by_the_host_in_steady_state(backend, options):
    params = params_of(torch.bfloat16 if "stochastic_rounding" in options else torch.float32)
    optimizer = quiet(params, rank=4, backend=backend, **options)
    steps = [[grad.to(DEVICE) for grad in grads] for grads in grads_of(params, 3)]
    run(optimizer, params, steps[:2])
    for param, grad in zip(params, steps[2], strict=True):
        param.grad = grad
    with Synchronisations() as counted:
        optimizer.step()
    assert counted.seen == []


def test_the_count_of_synchronisations_can_count():
    with Synchronisations() as counted:
        torch.ones(()).item()
    assert counted.seen == ["_local_scalar_dense.default"]


@pytest.mark.parametrize("columns", ["random", "huge", "tiny", "ill-conditioned", "dependent", "some zero", "one row"])
def test_cholesky_qr_is_orthonormal_for(columns):
    x = {
        "random": torch.randn(200, 24),
        "huge": 1e30 * torch.randn(200, 24),
        "tiny": 1e-30 * torch.randn(200, 24),
        "ill-conditioned": torch.randn(200, 24) @ torch.diag(torch.logspace(0, -8, 24)) @ torch.randn(24, 24),
        "dependent": torch.randn(200, 5) @ torch.randn(5, 24),
        "some zero": torch.randn(200, 24) * (torch.arange(24) % 2),
        "one row": torch.eye(200)[:, :1] @ torch.ones(1, 24),
    }[columns]
    basis = subspace.cholesky_qr(x, fallback=subspace.random_basis(200, 24))
    torch.testing.assert_close(basis.mT @ basis, torch.eye(24), rtol=0, atol=TOLERANCES["float32 orthonormal"])


def test_cholesky_qr_equals_qr_up_to_signs():
    x = torch.randn(5, 200, 24, generator=torch.Generator().manual_seed(0))
    fallback = subspace.random_basis(200, 24).expand_as(x)
    basis = subspace.cholesky_qr(x, fallback=fallback)
    reference = subspace.orthonormalize(x, fallback=fallback)
    signs = (basis * reference).sum(-2, keepdim=True).sign()
    torch.testing.assert_close(basis * signs, reference, rtol=0, atol=TOLERANCES["float32 step"])


def test_cholesky_qr_of_zero_keeps_the_basis():
    fallback = subspace.random_basis(30, 4)
    torch.testing.assert_close(subspace.cholesky_qr(torch.zeros(30, 4), fallback=fallback), fallback, rtol=0, atol=0)


def test_auto_is_what_describe_says():
    params = mixed_params()
    named = LDAdamW(params, rank=2)
    chosen = LDAdamW(copies(params), rank=2, backend="batched")
    steps = grads_of(params, 3)
    run(named, params, steps)
    run(chosen, _all_params(chosen), steps)
    chosen.param_groups[0]["backend"] = "auto"
    assert_same_state(named, chosen)
    assert "backend batched: " in str(describe(named))


def test_an_empty_stack_has_no_layout():
    assert matrix_layout((0, 8, 8), rank=2, proj_type="std") is None


def triton_suits(param: torch.Tensor, state: dict, options: dict, *, grad: torch.Tensor | None = None) -> bool:
    """Whether the kernels take this step, rather than what they fall back to."""
    from ldadam.backends import triton

    hyper = Hyperparameters(**{name: options[name] for name in NAMES if name in options})
    layout = matrix_layout(param.shape, rank=hyper.rank, proj_type=hyper.proj_type)
    grad = torch.zeros_like(param) if grad is None else grad
    return triton.suits(ParamUpdate(param, grad, state, 2.0, hyper, layout))


@pytest.mark.parametrize(("offset", "suited"), [(0, True), (1, False), (4, True)])
def test_kernels_are_not_given_a_gradient_that_is_not_aligned(offset, suited):
    """Gradients may be views into a bucket, as under DDP; the kernels load 16 bytes at a time."""
    param = params_of(torch.float32, [(300, 320)])[0]
    bucket = torch.zeros(300 * 320 + 16, device=DEVICE)
    grad = bucket[offset : offset + 300 * 320].view(300, 320)
    hyper = Hyperparameters(rank=8)
    layout = matrix_layout(param.shape, rank=8, proj_type="std")
    state = create_state(param, layout, hyper)
    assert triton_suits(param, state, {"rank": 8}, grad=grad) == suited


@pytest.mark.parametrize(
    ("options", "suited"),
    [
        ({"rank": 64, "error_dtype": "int4"}, True),
        ({"rank": 65, "error_dtype": "int4"}, False),
        ({"rank": 65}, True),
        ({"rank": 65, "stochastic_rounding": True}, False),
    ],
    ids=str,
)
def test_kernels_leave_high_ranks_with_codes_and_chance_to_the_page(options, suited):
    param = params_of(torch.float16, [(300, 320)])[0]
    hyper = Hyperparameters(**options)
    state = create_state(param, matrix_layout(param.shape, rank=hyper.rank, proj_type="std"), hyper)
    assert triton_suits(param, state, options) == suited


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs CUDA")
@pytest.mark.parametrize("options", [{}, {"error_dtype": "int4", "stochastic_rounding": True}], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_captured_step_equals_an_uncaptured_one(dtype, options):
    options = {"rank": 4, "lr": torch.tensor(1e-2, device="cuda"), "capturable": True, **options}
    fast, plain = (quiet(params_of(dtype), **options) for _ in "ab")
    steps = [[grad.cuda() for grad in grads] for grads in grads_of(params_of(dtype), 6)]
    run(plain, _all_params(plain), steps)
    params = _all_params(fast)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run(fast, params, steps[:3])
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        fast.step()
    for grads in steps[3:]:
        for param, grad in zip(params, grads, strict=True):
            param.grad.copy_(grad)
        graph.replay()
    assert_close(fast, plain, tolerance=0.0)


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_CUDA, reason="needs CUDA")
def test_cuda_does_not_synchronise_in_steady_state():
    params = params_of(torch.bfloat16)
    optimizer = quiet(params, rank=4)
    steps = [[grad.cuda() for grad in grads] for grads in grads_of(params, 4)]
    run(optimizer, params, steps[:3])
    for param, grad in zip(params, steps[3], strict=True):
        param.grad = grad
    torch.cuda.set_sync_debug_mode("error")
    try:
        optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_residual_is_rounded_once_and_its_scale_never(dtype):
    """On CUDA factors may have 16 bits, which the scale of a column with a tiny gradient does not fit into."""
    param, grad = parameter(24, 40, dtype=dtype), normal(24, 40, seed=1).to(dtype)
    grad[:, 3] = 0
    grad[5, 3] = 6e-8
    hyper = Hyperparameters(rank=4, scaled_residual=True)
    layout = matrix_layout(param.shape, rank=4, proj_type="std")
    update = ParamUpdate(param, grad, create_state(param, layout, hyper), 2.0, hyper, layout)
    (chunk,) = chunks([update], max_scratch=2**20)
    basis, factor = normal(24, 4, seed=2).to(dtype), 1e-3 * normal(4, 40, seed=3).to(dtype)
    scale = torch.full((1, 40), 1e-3)
    scale[0, 3] = 9e4
    before = param.detach().double()
    with torch.no_grad():
        batched._descend_(chunk.matrices[0], basis, factor, scale, decay=0.0, maximize=False, key=None)
    exact = before - basis.double() @ factor.double() - scale.double() * grad.double()
    half_a_unit = torch.finfo(dtype).eps / 2 * exact.abs() + torch.finfo(dtype).tiny
    # Half a unit in the last place, and a few of float32 for the sum itself.
    assert ((param.double() - exact).abs() <= half_a_unit + 1e-5 * exact.abs().max()).all()

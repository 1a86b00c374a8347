"""What the monitor reports is what the definitions say, computed the expensive way."""

import pytest
import torch

from ldadam import LDAdamW, describe, error_buffer
from ldadam.layout import matrix_layout
from ldadam.monitor import SubspaceMonitor, bytes_by_category
from ldadam.storages import storage_bytes

SHAPES = {"wide": (12, 30), "tall": (30, 12), "square": (16, 16), "experts": (3, 8, 14)}


def model_of(shapes: dict[str, tuple[int, ...]], dtype=torch.float32) -> torch.nn.ParameterDict:
    generator = torch.Generator().manual_seed(0)
    return torch.nn.ParameterDict(
        {name: torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for name, shape in shapes.items()}
    )


def steps_with_gradients(model, count):
    """Set new gradients, `count` times."""
    generator = torch.Generator().manual_seed(1)
    for step in range(1, count + 1):
        for parameter in model.values():
            parameter.grad = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
        yield step


@pytest.mark.parametrize(
    "options", [{}, {"update_interval": 2}, {"error_feedback": False}, {"proj_type": "reverse_std"}], ids=str
)
def test_the_captured_fraction_is_its_definition(options):
    """‖UUᵀA‖/‖A‖ with A = G + E formed before the step and U taken after it."""
    model = model_of(SHAPES)
    optimizer = LDAdamW(model.named_parameters(), lr=1e-2, rank=4, **options)
    monitor = SubspaceMonitor(optimizer, {parameter: name for name, parameter in model.named_parameters()})
    for _ in steps_with_gradients(model, 5):
        corrected = {
            name: p.grad + optimizer.state[p].get("error_buffer", torch.zeros(())) for name, p in model.items()
        }
        monitor.before_step()
        optimizer.step()
        measured = monitor.after_step()
        for name, parameter in model.items():
            layout = matrix_layout(parameter.shape, rank=4, proj_type=options.get("proj_type", "std"))
            matrix, basis = layout.to_matrix(corrected[name]), optimizer.state[parameter]["basis"]
            expected = (basis @ (basis.mT @ matrix)).norm() / matrix.norm()
            assert measured["captured"][name] == pytest.approx(expected.item(), abs=1e-4)


@pytest.mark.parametrize("error_dtype", [None, "int4"])
def test_the_error_norm_is_that_of_the_buffer_after_the_step(error_dtype):
    model = model_of({"weight": (12, 30)})
    optimizer = LDAdamW(model.named_parameters(), rank=4, error_dtype=error_dtype)
    monitor = SubspaceMonitor(optimizer, {parameter: name for name, parameter in model.named_parameters()})
    for _ in steps_with_gradients(model, 2):
        monitor.before_step()
        optimizer.step()
        measured = monitor.after_step()
    buffer = error_buffer.read(optimizer.state[model["weight"]], model["weight"].shape, torch.float32)
    assert measured["error_norm"] == {"weight": pytest.approx(buffer.norm().item())}


def test_dense_parameters_and_other_optimizers_are_left_out():
    model = model_of({"bias": (9,), "small": (3, 30)})
    for optimizer in (LDAdamW([{"params": list(model.values()), "rank": None}]), torch.optim.AdamW(model.values())):
        monitor = SubspaceMonitor(optimizer, {parameter: name for name, parameter in model.named_parameters()})
        for _ in steps_with_gradients(model, 2):
            monitor.before_step()
            optimizer.step()
            assert monitor.after_step() == {"captured": {}, "error_norm": {}}


@pytest.mark.parametrize("num_steps_before", [0, 2])
def test_a_step_that_a_grad_scaler_skips_is_left_out_and_leaves_no_state(num_steps_before):
    """Also of the matrices whose gradients are finite."""
    model = model_of(SHAPES)
    optimizer = LDAdamW(model.named_parameters(), lr=1e-2, rank=4)
    monitor = SubspaceMonitor(optimizer, {parameter: name for name, parameter in model.named_parameters()})
    for _ in steps_with_gradients(model, num_steps_before):
        optimizer.step()
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(sum(param.sum() for param in model.values()) + model["wide"].sum() * float("inf")).backward()
    scaler.unscale_(optimizer)
    monitor.before_step()
    scaler.step(optimizer)
    assert monitor.after_step() == {"captured": {}, "error_norm": {}}
    assert len(optimizer.state) == (len(SHAPES) if num_steps_before else 0)


def test_measuring_changes_no_number():
    trained = []
    for measure in (True, False):
        model = model_of(SHAPES)
        optimizer = LDAdamW(model.named_parameters(), lr=1e-2, rank=4)
        monitor = SubspaceMonitor(optimizer, {parameter: name for name, parameter in model.named_parameters()})
        for _ in steps_with_gradients(model, 4):
            if measure:
                monitor.before_step()
            optimizer.step()
            if measure:
                monitor.after_step()
        trained.append(list(model.values()))
    torch.testing.assert_close(trained[0], trained[1], rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_counted_bytes_are_the_planned_ones(dtype):
    model = model_of({**SHAPES, "bias": (9,)}, dtype)
    optimizer = LDAdamW(model.named_parameters(), rank=4)
    for _ in steps_with_gradients(model, 2):
        optimizer.step()
    counted = bytes_by_category(model, optimizer)
    assert counted["optimizer"] == describe(optimizer).state_bytes
    assert counted["weights"] == counted["gradients"] == sum(p.numel() * p.element_size() for p in model.values())


def test_a_view_counts_for_all_that_it_keeps_alive():
    whole = torch.zeros(100, 100)
    assert storage_bytes([whole[:, :2]]) == 40_000
    assert storage_bytes([whole, whole[:5], torch.zeros(10)]) == 40_040

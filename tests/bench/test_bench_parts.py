"""What a benchmark is made of: shapes, gradients, the equality check, costs, memory, and the order of steps."""

import math

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ldadam import LDAdamW
from ldadam.backends import batched
from ldadam.bench import timing
from ldadam.bench.clock import Ceilings, Duration
from ldadam.bench.cost import low_rank_operations, state_bytes, step_cost
from ldadam.bench.equality import TOLERANCES, check_equality, scaled_down
from ldadam.bench.memory import extra_memory
from ldadam.bench.models import find_models
from ldadam.bench.step import _summary
from ldadam.bench.subjects import find_entry
from ldadam.bench.timing import Bench, Timing
from ldadam.bench.weights import fill_gradients_, make_weights
from tolerances import TOLERANCES as SUITE_TOLERANCES

CPU = torch.device("cpu")


def model_of(text, *, all_parameters=False):
    return find_models(text, all_parameters=all_parameters)[0]


def weights_of(text, **options):
    return make_weights(model_of(text), device=CPU, dtype=options.pop("dtype", torch.float32))


def test_the_matrices_of_60m_are_those_of_the_paper():
    model = model_of("60m")
    assert {each.shape: each.count for each in model.shapes} == {(512, 512): 32, (1376, 512): 16, (512, 1376): 8}
    assert model.num_weights == 32 * 512 * 512 + 24 * 512 * 1376


def test_all_parameters_add_embedding_head_and_norms():
    model = model_of("60m", all_parameters=True)
    dense = {each.shape: each.count for each in model.shapes if not each.low_rank}
    assert dense == {(512,): 17, (32_000, 512): 2}


def test_several_presets_are_several_models_and_shapes_are_one():
    assert [model.name for model in find_models("350m,1b", all_parameters=False)] == ["350m", "1b"]
    assert [(each.shape, each.count) for each in model_of("8x12:3,5x7").shapes] == [((8, 12), 3), ((5, 7), 1)]


def test_weights_come_in_the_order_of_layers():
    shapes = [tuple(param.shape) for param in weights_of("8x12:4,12x8:2").low_rank]
    assert shapes == [(8, 12), (12, 8), (8, 12), (8, 12), (12, 8), (8, 12)]


def test_gradients_are_a_signal_and_noise_and_can_be_restored():
    weights = weights_of("64x96:1")
    grad = weights.params[0].grad
    assert grad is not None
    before, values = grad.clone(), torch.linalg.svdvals(grad)
    assert values[7] > 2 * values[8] > 0
    with torch.no_grad():
        grad.zero_()
        fill_gradients_(weights.params, seed=1)
    assert weights.params[0].grad is grad
    torch.testing.assert_close(grad, before, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", TOLERANCES)
def test_tolerances_are_those_of_the_suite(dtype):
    assert TOLERANCES[dtype] == SUITE_TOLERANCES[f"backend, {dtype}, many steps"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("text", ["63x100:2,100x63:1,48x48:1", "1b"])
def test_the_batched_backend_passes_the_equality_check(text, dtype):
    equality = check_equality("batched", model_of(text), 8, device=CPU, dtype=dtype)
    assert equality.holds
    assert equality.distance > 0


def spoil(monkeypatch, change):
    right = batched.step_

    def wrong(updates):
        right(updates)
        for update in updates:
            change(update)

    monkeypatch.setattr(batched, "step_", wrong)


WRONG = {
    "weight": lambda update: update.param.mul_(1.001),
    "error_buffer": lambda update: update.state["error_buffer"].mul_(1.001),
    "exp_avg_sq": lambda update: update.state["exp_avg_sq"].mul_(1.001),
    "momentum": lambda update: update.state["exp_avg"].mul_(1.001),
    "nan": lambda update: update.param.view(-1)[:1].fill_(math.nan),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_backend_fails_the_equality_check(monkeypatch, kind):
    spoil(monkeypatch, WRONG[kind])
    assert not check_equality("batched", model_of("40x64:1"), 4, device=CPU, dtype=torch.float32).holds


def test_small_weights_keep_orientation_alignment_and_room_for_the_rank():
    model = model_of("1b")
    for each, small in zip(model.shapes, scaled_down(model, 256).shapes, strict=True):
        assert [side % 16 for side in small.shape] == [side % 16 for side in each.shape]
        assert (small.shape[0] < small.shape[1]) == (each.shape[0] < each.shape[1])
        assert 2 * 256 <= min(small.shape) < min(each.shape)
    assert scaled_down(model_of("40x24:1"), 4).shapes[0].shape == (40, 24)


def stepped(name, weights, rank=4):
    stepper = find_entry(name).build(weights, rank)
    stepper.step()
    return stepper


def test_adamw_moves_seven_numbers_a_weight():
    weights = weights_of("8x12:2")
    assert step_cost(stepped("adamw", weights), weights.params).num_bytes == 7 * 4 * 8 * 12 * 2


def test_ldadamw_moves_nine_numbers_a_weight_and_its_small_state_twice():
    weights = weights_of("8x12:1")
    small = 8 * 4 + 2 * 4 * 12
    assert step_cost(stepped("ldadamw", weights), weights.params).num_bytes == 4 * (9 * 8 * 12 + 2 * small)


def test_no_step_takes_fewer_operations_than_are_counted():
    m, n, r = 300, 500, 16
    weights = weights_of(f"{m}x{n}:1")
    stepper = stepped("ldadamw:batched", weights, rank=r)
    with FlopCounterMode(display=False) as counter:
        stepper.step()
    uncounted = 6 * m * n * r + 4 * m * r**2  # by torch: E and W, which are updated in place, and QR
    operations = low_rank_operations(m, n, r)
    assert operations <= counter.get_total_flops() + uncounted < 1.05 * operations


def test_state_bytes_are_those_of_the_storages():
    param = torch.nn.Parameter(torch.zeros(8, 12))
    optimizer = torch.optim.SGD([param])
    shared = torch.zeros(100)
    projector = type("Projector", (), {})()
    projector.basis = torch.zeros(8, 8)[:, :2]
    optimizer.state[param] = {"a": shared, "b": shared[:10], "projector": projector, "step": 3}
    assert state_bytes(optimizer) == 400 + 256


def test_extra_memory_is_the_peak_of_what_lives_at_once():
    class Stepper:
        def __init__(self):
            self.state, self.weight = {}, torch.zeros(1000)

        def step(self):
            for _ in range(3):
                self.weight.add_(torch.ones(1000) * 2)

    assert extra_memory(Stepper(), CPU) == 8000


def test_adamw_in_place_needs_no_extra_memory():
    weights = weights_of("64x64:2")
    assert extra_memory(stepped("adamw", weights), CPU) < weights.num_bytes / 10


def bench(text="8x12:2", *, repeats=4, rank=2):
    return Bench(weights_of(text), rank, CPU, repeats)


def steps_in_order(monkeypatch, one, *, names=("adamw", "adamw:foreach")):
    """The names of the optimizers in the order of their timed steps."""
    order, timings = [], [Timing(find_entry(name)) for name in names]
    plain = timing.timed

    def noted(call, device):
        owner = getattr(call, "__self__", None)
        order.extend(each.entry.name for each in timings if each.stepper is owner)
        return plain(call, device)

    monkeypatch.setattr(timing, "timed", noted)
    together = one.run(timings, on_visit=lambda _: None)
    return together, order, timings


def test_optimizers_step_in_turn(monkeypatch):
    together, order, timings = steps_in_order(monkeypatch, bench(repeats=3))
    assert together
    warm_up = timing.WARM_UP_STEPS
    a, b = "adamw", "adamw:foreach"
    assert order == [*[a] * (warm_up + 1), *[b] * (warm_up + 1), a, b, a, b]
    assert [len(visit) for visit in timings[0].visits] == [1, 1, 1]


def test_optimizers_that_do_not_fit_together_are_alone_in_memory(monkeypatch):
    monkeypatch.setattr(timing, "free_memory", lambda device: 1)
    alive = []
    one, timings = bench(repeats=7), [Timing(find_entry(name)) for name in ("adamw", "adamw:foreach")]
    together = one.run(timings, on_visit=lambda _: alive.append([each for each in timings if each.stepper]))
    assert not together
    assert not any(alive)
    assert [[len(visit) for visit in each.visits] for each in timings] == [[3, 2, 2], [3, 2, 2]]
    assert all(each.state_bytes and each.cost and each.extra_bytes is not None for each in timings)


def test_a_slow_optimizer_takes_fewer_steps(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS_EACH", 0.0)
    one, each = bench(repeats=10), Timing(find_entry("adamw"))
    one.run([each], on_visit=lambda _: None)
    assert len(each.samples) == timing.LEAST_STEPS


def test_spoilt_gradients_are_restored_before_the_next_optimizer(capsys):
    one = bench()
    before = [param.grad.clone() for param in one.weights.params if param.grad is not None]
    one.run([Timing(find_entry("strange_optimizers:Spoiler"))], on_visit=lambda _: None)
    for param, grad in zip(one.weights.params, before, strict=True):
        torch.testing.assert_close(param.grad, grad, rtol=0, atol=0)


def test_a_ratio_is_taken_within_rounds():
    slow, fast = Timing(find_entry("ldadamw")), Timing(find_entry("adamw"))
    slow.visits = [[Duration(2.0, 0.0)], [Duration(20.0, 0.0)], [Duration(6.0, 0.0)]]
    fast.visits = [[Duration(1.0, 0.0)], [Duration(10.0, 0.0)], [Duration(1.0, 0.0)]]
    assert slow.ratio_to(fast) == 2.0


def test_a_projection_is_shared_out_over_its_200_steps():
    galore = Timing(find_entry("galore"), first_seconds=3.0, projection_seconds=20.0)
    galore.visits = [[Duration(1.0, 0.5)]]
    adamw = Timing(find_entry("adamw"), first_seconds=1.0)
    adamw.visits = [[Duration(0.5, 0.5)]]
    row = _summary(galore, [galore, adamw], Ceilings(1.0, 1.0))
    assert row["first_step_seconds"] == 23.0
    assert row["projection_step_seconds"] == 21.0
    assert row["amortised_seconds"] == pytest.approx(1.1)
    assert row["amortised_ratio_to_adamw"] == pytest.approx(2.2)


def test_ldadamw_s_dense_weights_stay_dense():
    weights = make_weights(model_of("demo", all_parameters=True), device=CPU, dtype=torch.float32)
    optimizer = find_entry("ldadamw").build(weights, 4)
    assert isinstance(optimizer, LDAdamW)
    assert [group["rank"] for group in optimizer.param_groups] == [4, None]

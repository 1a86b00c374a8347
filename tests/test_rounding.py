"""Stochastic rounding: unbiased, reproducible from the step alone, and kind to updates that are too small to see."""

import pytest
import torch

from builders import assert_same_params, copies, grads_of, mixed_params, normal, parameter, quiet, run
from ldadam import LDAdamW, pieces
from ldadam.live_bytes import LiveBytes
from ldadam.rounding import mix, noise_bits, noise_key, stochastic_round

HALF = [torch.bfloat16, torch.float16]
MANY = torch.Size((500, 400))


def noise(number: int = 0, step: float = 1.0) -> torch.Tensor:
    return noise_bits(noise_key(number, step), MANY.numel(), torch.device("cpu"))


def standard_error(deviation: float) -> float:
    return deviation / MANY.numel() ** 0.5


def test_mixing_is_one_hash_for_ints_and_tensors_and_a_bijection():
    numbers = torch.randint(2**32, (1000,), generator=torch.Generator().manual_seed(0))
    assert mix(numbers).tolist() == [mix(number) for number in numbers.tolist()]
    assert mix(torch.arange(2**20)).unique().numel() == 2**20


def test_each_input_bit_changes_each_output_bit_half_the_time():
    numbers = torch.randint(2**32, (20000,), generator=torch.Generator().manual_seed(0))
    for bit in range(32):
        changed = mix(numbers) ^ mix(numbers ^ (1 << bit))
        shares = torch.stack([(changed >> out & 1).double().mean() for out in range(32)])
        # Five standard errors of a fair coin tossed 20,000 times, and the bias that a two-multiplication hash has.
        assert (shares - 0.5).abs().max() < 5 * 0.5 / 20000**0.5 + 0.01


def test_noise_is_uniform_and_independent_of_its_neighbours_steps_and_parameters():
    bits = noise().double() / 2**16
    assert abs(bits.mean() - 0.5) < 5 * standard_error(12**-0.5)
    assert abs(bits.var() - 1 / 12) < 5 * standard_error(180**-0.5)
    centred = bits - bits.mean()
    others = [noise(step=2.0), noise(number=1), bits.roll(1), bits.roll(400), bits.roll(1 << 15)]
    for other in others:
        other = other.double()
        correlation = (centred * (other - other.mean())).mean() / (centred.std() * other.std())
        assert abs(correlation) < 5 * standard_error(1.0)


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("magnitude", [1.0, 1e-3, 1e-5, 3e-8, 1e4])
def test_rounding_has_no_bias_and_the_variance_of_a_coin(dtype, magnitude):
    """Between its two neighbours, at every share of the way."""
    exact = (magnitude * (1 + normal(MANY[0], 1).abs())).double()
    values = exact.float().expand(MANY)
    finfo = torch.finfo(dtype)
    spacing = finfo.eps * 2.0 ** exact.clamp_min(finfo.tiny).log2().floor()
    share = (values[:, :1].double() / spacing).frac()
    deviation = (share * (1 - share)).sqrt()
    steps = [stochastic_round(values, dtype, key=noise_key(3, step)).double() for step in range(1, 9)]
    offset = torch.cat(steps, dim=1) / spacing - (exact.float().double() / spacing).floor()
    assert ((offset == 0) | (offset == 1)).all(), "only the two neighbours occur"
    # Five standard errors, and the resolution of the noise.
    count = offset.shape[1]
    assert ((offset.mean(1, keepdim=True) - share).abs() <= 5 * deviation / count**0.5 + 2**-13).all()
    assert ((offset.var(1, keepdim=True) - deviation**2).abs() <= 5 / count**0.5).all()


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_what_is_representable_or_not_finite_stays(dtype):
    finfo = torch.finfo(dtype)
    special = torch.tensor([0.0, -0.0, finfo.max, -finfo.max, finfo.tiny, torch.inf, -torch.inf])
    values = torch.cat([normal(10000, dtype=dtype).float(), special])
    assert torch.equal(stochastic_round(values, dtype, key=7), values.to(dtype))
    assert stochastic_round(torch.tensor([torch.nan]), dtype, key=7).isnan().all()
    # The NaN that CUDA makes has all bits set.
    assert stochastic_round(torch.tensor([0x7FFFFFFF]).int().view(torch.float32), dtype, key=7).isnan().all()


def test_the_noise_of_a_step_that_a_device_counts_is_that_of_one_the_host_counts():
    values = normal(50, 60)
    for number, step in ((0, 1.0), (5, 123456.0)):
        key = noise_key(number, torch.tensor(step, dtype=torch.float64))
        from_device = stochastic_round(values, torch.bfloat16, key=key)
        assert torch.equal(from_device, stochastic_round(values, torch.bfloat16, key=noise_key(number, step)))


def test_rounding_does_not_depend_on_memory_order():
    values = normal(50, 60)
    key = noise_key(1, 2.0)
    columns_first = values.mT.contiguous().mT
    assert torch.equal(
        stochastic_round(columns_first, torch.float16, key=key), stochastic_round(values, torch.float16, key=key)
    )


@pytest.mark.parametrize("dtype", HALF, ids=str)
@pytest.mark.parametrize("key", [noise_key(1, 2.0), 2**32 - 100, torch.tensor(2**32 - 100)], ids=str)
def test_pieces_are_rounded_as_the_whole_is(dtype, key, monkeypatch):
    for values in (normal(50, 61), normal(50, 61).mT, normal(3, 20, 7), normal(7)[0]):
        whole = stochastic_round(values, dtype, key=key)
        with monkeypatch.context() as patch:
            patch.setattr(pieces, "PIECE", 37)
            assert torch.equal(stochastic_round(values, dtype, key=key), whole)


@pytest.mark.parametrize("dtype", HALF, ids=str)
def test_rounding_a_large_matrix_takes_little_beside_the_result(dtype, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 1000)
    values = normal(20 * pieces.PIECE)
    with LiveBytes() as live:
        rounded = stochastic_round(values, dtype, key=1)
    assert live.peak <= rounded.nbytes + 24 * pieces.PIECE


@pytest.mark.parametrize(("rank", "lr"), [(None, 1e-4), (4, 8e-4)])
def test_updates_that_nearest_rounding_loses_are_kept_on_average(rank, lr):
    """Each moves a weight of 1 by about 1e-4, where half a unit of bfloat16 is 2e-3."""
    num_steps = 200
    moved = {}
    for stochastic in (True, False):
        param = torch.nn.Parameter(torch.ones(60, 80, dtype=torch.bfloat16))
        optimizer = LDAdamW([param], lr=lr, rank=rank, stochastic_rounding=stochastic, weight_decay=0.0)
        grad = torch.ones(60, 80, dtype=torch.bfloat16)
        run(optimizer, [param], [[grad]] * num_steps)
        moved[stochastic] = 1 - param.detach().double().mean().item()
    shadow = torch.nn.Parameter(torch.ones(60, 80))
    run(LDAdamW([shadow], lr=lr, rank=rank), [shadow], [[torch.ones(60, 80)]] * num_steps)
    expected = 1 - shadow.detach().double().mean().item()
    assert moved[False] == 0
    # A walk of 200 coins, each at most half a unit of 2^-8, averaged over 4800 entries: five standard errors.
    assert abs(moved[True] - expected) < 5 * 0.5 * 2**-8 * (num_steps / 4800) ** 0.5
    assert expected > 0.015


def test_equal_runs_have_equal_bits_and_equal_parameters_in_other_places_do_not():
    def train() -> list[torch.nn.Parameter]:
        params = [parameter(20, 30, dtype=torch.bfloat16) for _ in range(2)]
        groups = [{"params": params[:1]}, {"params": params[1:]}]
        optimizer = LDAdamW(groups, rank=4, lr=1e-2, stochastic_rounding=True)
        run(optimizer, params, [[grads[0]] * 2 for grads in grads_of(params, 3)])
        return params

    one, other = train(), train()
    assert_same_params(one, other)
    assert not torch.equal(one[0], one[1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wider_parameters_are_not_affected(dtype):
    params = mixed_params(dtype)
    others = copies(params)
    for some, stochastic in ((params, True), (others, False)):
        run(quiet(some, rank=2, stochastic_rounding=stochastic), some, grads_of(some, 3))
    assert_same_params(params, others)

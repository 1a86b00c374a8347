"""The codec of quantised error buffers: what each code means, how far an entry may be off, and what comes back."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from builders import normal
from ldadam import pieces
from ldadam.live_bytes import LiveBytes
from ldadam.quantization import BLOCK, LARGEST_CODE, Quantized, decode, encode, storage
from tolerances import TOLERANCES

KINDS = list(LARGEST_CODE)
MAGNITUDES = [2e-36, 1e-30, 1e-4, 1.0, 1e30, 3e38]
FAST = settings(max_examples=100, derandomize=True, deadline=None)


def round_trip(values: Tensor, kind: str, **options) -> Tensor:
    return decode(encode(values, kind, **options), cols=values.shape[-1], dtype=values.dtype)


def levels(quantized: Quantized, cols: int, dtype=torch.float32) -> Tensor:
    """The size of one level at each entry."""
    return quantized.scales.to(dtype).repeat_interleave(BLOCK, dim=-1)[..., :cols]


def assert_within_half_a_level(values: Tensor, kind: str) -> None:
    quantized = encode(values, kind)
    error = (decode(quantized, cols=values.shape[-1], dtype=values.dtype) - values).abs()
    half = levels(quantized, values.shape[-1], values.dtype) / 2
    assert (error <= half * (1 + TOLERANCES["codec, rounding of a level"])).all()


def assert_comes_back(quantized: Quantized, kind: str, cols: int) -> None:
    again = encode(decode(quantized, cols=cols), kind)
    torch.testing.assert_close(again.codes, quantized.codes, rtol=0, atol=0)
    torch.testing.assert_close(again.scales, quantized.scales, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 64), (5, 130), (1, 1), (4, 63), (2, 3, 65), (7,)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_no_entry_is_off_by_more_than_half_a_level(kind, shape, dtype):
    assert_within_half_a_level(normal(*shape, dtype=dtype), kind)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("magnitude", MAGNITUDES)
def test_blocks_of_any_magnitude_are_within_half_a_level_and_come_back(kind, magnitude):
    values = magnitude * normal(50, 100).clamp(-1, 1)
    assert_within_half_a_level(values, kind)
    assert_comes_back(encode(values, kind), kind, cols=100)


@FAST
@given(
    st.sampled_from(KINDS),
    st.integers(1, 200).flatmap(
        lambda cols: st.lists(st.floats(-(2.0**120), 2.0**120, width=32), min_size=cols, max_size=cols)
    ),
)
def test_whatever_the_row_what_was_decoded_is_encoded_alike(kind, row):
    values = torch.tensor([row])
    quantized = encode(values, kind)
    assert_comes_back(quantized, kind, cols=len(row))
    error = (decode(quantized, cols=len(row)) - values).abs()
    flushed = torch.finfo(torch.bfloat16).tiny * LARGEST_CODE[kind]
    half = levels(quantized, len(row)) / 2 * (1 + TOLERANCES["codec, rounding of a level"])
    assert (error <= torch.where(half > 0, half, flushed)).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scale", [2.0**-100, 0.0078125, 1.0, 1.9921875, 2.0**100])
def test_every_code_is_reachable_and_representable_values_are_exact(kind, scale):
    largest = LARGEST_CODE[kind]
    codes = torch.arange(-largest, largest + 1).float()
    values = torch.zeros(len(codes), BLOCK)
    values[:, 0] = largest
    values[:, 1] = codes
    values *= scale
    torch.testing.assert_close(round_trip(values, kind), values, rtol=0, atol=0)
    noise = torch.full_like(values, 0.999)
    torch.testing.assert_close(round_trip(values, kind, noise=noise), values, rtol=0, atol=0)
    torch.testing.assert_close(round_trip(values, kind, noise=0 * noise), values, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_the_largest_entry_of_each_block_has_the_largest_code(kind):
    """Whatever the rounding of its scale, of which these values try all."""
    values = torch.zeros(4096, BLOCK)
    values[:, 5] = torch.linspace(1, 4, 4096)
    quantized = encode(-values, kind)
    assert (decode(quantized, cols=BLOCK) / levels(quantized, BLOCK))[:, 5].eq(-LARGEST_CODE[kind]).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("magnitude", [0.0, 1e-45, 1e-40])
def test_a_block_of_zeros_and_of_denormals_is_zero_beside_others(kind, magnitude):
    values = torch.full((2, 3 * BLOCK), magnitude)
    values[:, BLOCK : 2 * BLOCK] = 3.0
    decoded = round_trip(values, kind)
    assert (decoded[:, :BLOCK] == 0).all() and (decoded[:, 2 * BLOCK :] == 0).all()
    assert decoded[:, BLOCK : 2 * BLOCK].allclose(torch.tensor(3.0), rtol=TOLERANCES["codec, scale"], atol=0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_spoils_its_block_and_no_other(kind, bad):
    values = normal(2, 3 * BLOCK)
    values[1, BLOCK + 7] = bad
    decoded = round_trip(values, kind)
    assert not decoded[1, BLOCK : 2 * BLOCK].isfinite().any()
    values[1, BLOCK : 2 * BLOCK] = decoded[1, BLOCK : 2 * BLOCK] = 0
    torch.testing.assert_close(decoded, round_trip(values, kind), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_negated_row_has_negated_values(kind):
    values = normal(20, 100)
    torch.testing.assert_close(round_trip(-values, kind), -round_trip(values, kind), rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_stochastic_rounding_is_right_on_average_and_nearest_rounding_is_not(kind):
    values = torch.full((4000, BLOCK), 0.3)
    values[:, 0] = LARGEST_CODE[kind]
    noise = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
    mean = round_trip(values, kind, noise=noise)[:, 1:].mean()
    # A coin of probability 0.3, tossed 252,000 times: five standard deviations.
    assert abs(mean - 0.3) < 5 * (0.21 / (4000 * 63)) ** 0.5
    assert round_trip(values, kind)[:, 1:].eq(0).all()


@pytest.mark.parametrize(("kind", "codes", "dtype"), [("int8", 131, torch.int8), ("int4", 66, torch.uint8)])
def test_shapes_and_dtypes_are_those_planned(kind, codes, dtype):
    quantized = encode(normal(2, 5, 131), kind)
    assert (quantized.codes.shape, quantized.codes.dtype) == ((2, 5, codes), dtype)
    assert (quantized.scales.shape, quantized.scales.dtype) == ((2, 5, 3), torch.bfloat16)
    for planned, tensor in zip(storage((2, 5), 131, kind), quantized, strict=True):
        assert (planned.shape, planned.dtype, planned.nbytes) == (tensor.shape, tensor.dtype, tensor.nbytes)


def test_the_first_code_of_a_byte_is_the_low_one():
    assert encode(torch.tensor([[7.0, -7.0, 1.0]]), "int4").codes.tolist() == [[0x97, 0x01]]


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_are_encoded_and_decoded_as_the_whole_is(kind, monkeypatch):
    for values in (normal(7, 130), normal(130, 7).mT, normal(2, 3, 65), normal(65), normal(0, 9)):
        noise = torch.rand(values.shape, generator=torch.Generator().manual_seed(0))
        whole = [(encode(values, kind, noise=each), round_trip(values, kind, noise=each)) for each in (None, noise)]
        with monkeypatch.context() as patch:
            patch.setattr(pieces, "PIECE", 150)
            again = [(encode(values, kind, noise=each), round_trip(values, kind, noise=each)) for each in (None, noise)]
        torch.testing.assert_close(again, whole, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_a_large_matrix_is_encoded_and_decoded_with_little_beside_the_result(kind, monkeypatch):
    monkeypatch.setattr(pieces, "PIECE", 1280)
    values = normal(200, 128)
    with LiveBytes() as live:
        quantized = encode(values, kind)
    assert live.peak <= sum(tensor.nbytes for tensor in quantized) + 24 * pieces.PIECE
    with LiveBytes() as live:
        decode(quantized, cols=values.shape[1])
    assert live.peak <= values.nbytes + 24 * pieces.PIECE

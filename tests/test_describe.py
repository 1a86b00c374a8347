"""The table of what an optimizer does: every byte of it is a live byte after a step."""

import pytest
import torch

from builders import grads_of, live_bytes, mixed_params, parameter, quiet, run
from ldadam import LDAdamW, describe

VARIANTS = [
    {},
    {"error_feedback": False},
    {"error_dtype": "bfloat16"},
    {"error_dtype": "float32"},
    {"error_dtype": "int8"},
    {"error_dtype": "int4"},
    {"skip_nonfinite": True},
    {"rank": 0.3},
    {"rank": None},
    {"proj_type": "reverse_std"},
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("options", VARIANTS, ids=str)
def test_planned_bytes_are_live_bytes_after_a_step(options, dtype):
    params = mixed_params(dtype)
    optimizer = quiet(params, **{"rank": 4, **options})
    planned = describe(optimizer)
    assert not optimizer.state, "describing creates no state"
    run(optimizer, params, grads_of(params, 2))
    for row, state in zip(planned.rows, optimizer.state.values(), strict=True):
        assert row.state_bytes == {key: value.nbytes for key, value in state.items()}
    assert sum(planned.state_bytes.values()) == live_bytes(optimizer)


def test_a_row_says_side_rank_and_reason():
    params = [
        ("layers.0.up.weight", parameter(20, 12)),
        ("layers.0.experts", parameter(3, 6, 30)),
        ("embed.weight", parameter(64, 12)),
        ("layers.0.up.bias", parameter(20)),
    ]
    rows = {row.name: row for row in describe(LDAdamW(params, rank=4)).rows}
    up, experts = rows["layers.0.up.weight"], rows["layers.0.experts"]
    assert (up.shape, up.side, up.rank, up.reason) == ((20, 12), "right", 4, "both sides exceed the rank")
    assert (experts.shape, experts.side, experts.rank) == ((3, 6, 30), "left", 4)
    assert (rows["embed.weight"].rank, rows["embed.weight"].reason) == (None, "embedding")
    assert (rows["layers.0.up.bias"].side, rows["layers.0.up.bias"].reason) == (None, "not a matrix")


def test_a_matrix_made_dense_by_its_group_says_so():
    rows = describe(LDAdamW([{"params": [parameter(12, 20)], "rank": None}, {"params": [parameter(5)]}])).rows
    assert [row.reason for row in rows] == ["its group has rank=None", "not a matrix"]
    assert rows[1].name == "parameter 0 of param group 1"


def test_the_table_has_a_line_for_each_parameter_and_one_of_totals():
    params = mixed_params()
    description = describe(LDAdamW(params, rank=4))
    lines = str(description).splitlines()
    assert lines[0].split() == ["name", "shape", "side", "rank", "state", "bytes", "why"]
    assert len(lines) == 1 + len(params) + 2
    assert lines[-2].startswith(f"total {sum(description.state_bytes.values()):,} bytes: step 20, exp_avg")

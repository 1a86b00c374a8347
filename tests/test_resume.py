"""30 steps equal 15, a save, a fresh process, a load, and 15, bit by bit."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from resume_runs import CASES, NUM_STEPS, build, checkpoint, train


@pytest.fixture(scope="module")
def resumed(tmp_path_factory) -> Path:
    """A folder with what a fresh process made of every half-way checkpoint."""
    folder = tmp_path_factory.mktemp("resume")
    for index, case in enumerate(CASES):
        params, optimizer = build(*case)
        train(params, optimizer, 0, NUM_STEPS // 2)
        torch.save(checkpoint(params, optimizer), folder / f"half-{index}.pt")
    script = Path(__file__).with_name("resume_runs.py")
    subprocess.run([sys.executable, str(script), str(folder)], check=True)
    return folder


@pytest.mark.parametrize("index", range(len(CASES)), ids=[", ".join(case) for case in CASES])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(resumed, index):
    params, optimizer = build(*CASES[index])
    train(params, optimizer, 0, NUM_STEPS)
    expected = checkpoint(params, optimizer)
    actual = torch.load(resumed / f"end-{index}.pt", weights_only=True)
    torch.testing.assert_close(actual["params"], expected["params"], rtol=0, atol=0)
    assert actual["optimizer"]["param_groups"] == expected["optimizer"]["param_groups"]
    assert actual["optimizer"]["state"].keys() == expected["optimizer"]["state"].keys()
    for key, state in expected["optimizer"]["state"].items():
        torch.testing.assert_close(actual["optimizer"]["state"][key], state, rtol=0, atol=0)


def test_resuming_without_the_optimizer_state_differs(tmp_path):
    """The comparison above can fail."""
    params, optimizer = build("defaults", "float32")
    train(params, optimizer, 0, NUM_STEPS)
    others, fresh = build("defaults", "float32")
    train(others, fresh, 0, NUM_STEPS // 2)
    _, fresh = build("defaults", "float32")
    fresh.param_groups[0]["params"], fresh.param_groups[1]["params"] = others[:4], others[4:]
    train(others, fresh, NUM_STEPS // 2, NUM_STEPS)
    assert not any(torch.equal(param, other) for param, other in zip(params, others, strict=True))

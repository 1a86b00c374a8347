"""Trajectories of the published LDAdamW on fixed gradients; see golden/README.md for what the files hold."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from ldadam import LDAdamW
from tolerances import TOLERANCES

GOLDEN = Path(__file__).parent / "golden"
NAMES = sorted(path.stem for path in GOLDEN.glob("*.json"))

TOLERANCE = TOLERANCES["published trajectory"]


def replay(name: str) -> tuple[dict, dict[str, np.ndarray], dict[int, Tensor], dict[int, Tensor]]:
    """The settings and arrays of a golden run, and our weights and error buffers at its recorded steps."""
    settings = json.loads((GOLDEN / f"{name}.json").read_text())
    arrays = dict(np.load(GOLDEN / f"{name}.npz"))
    param = torch.nn.Parameter(torch.tensor(arrays["weight0"], dtype=torch.float64))
    shared = ("weight_decay", "rank", "rho", "proj_type", "proj_method", "error_feedback")
    options = {key: settings[key] for key in shared if key in settings}
    if not settings["low_rank"]:
        options["rank"] = None
    optimizer = LDAdamW([param], lr=settings["lr"], betas=tuple(settings.get("betas", (0.908, 0.99))), **options)
    weights, errors = {}, {}
    for step, grad in enumerate(torch.tensor(arrays["grads"], dtype=torch.float64), start=1):
        if settings["lrs"]:
            optimizer.param_groups[0]["lr"] = settings["lrs"][step - 1]
        param.grad = grad
        optimizer.step()
        if step in settings["record"]:
            weights[step] = param.detach().clone()
            if "error_buffer" in optimizer.state[param]:
                errors[step] = optimizer.state[param]["error_buffer"].clone()
    return settings, arrays, weights, errors


@pytest.mark.parametrize("name", NAMES)
def test_weights_follow_the_published_trajectory(name):
    settings, arrays, weights, _ = replay(name)
    start = torch.tensor(arrays["weight0"], dtype=torch.float64)
    for step, published in zip(settings["record"], torch.tensor(arrays["weights"]), strict=True):
        distance = (published - start).norm()
        assert (weights[step] - published).norm() <= TOLERANCE * distance, f"{name}, step {step}"


@pytest.mark.parametrize(
    "name", [name for name in NAMES if json.loads((GOLDEN / f"{name}.json").read_text())["has_error"]]
)
def test_error_buffer_follows_the_published_one(name):
    settings, arrays, _, errors = replay(name)
    for step, published in zip(settings["record"], torch.tensor(arrays["errors"], dtype=torch.float64), strict=True):
        assert (errors[step] - published).norm() <= TOLERANCE * published.norm(), f"{name}, step {step}"


def test_all_eleven_trajectories_are_here():
    assert len(NAMES) == 11

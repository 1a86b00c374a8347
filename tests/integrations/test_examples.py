"""Every example, in real processes: ten steps, and ten more in a fresh process, are twenty in one go, bit for bit."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

EXAMPLES = sorted(path for path in (Path(__file__).parents[2] / "examples").glob("*.py") if path.stem != "tiny_llama")


def run(example: Path, out: Path, *options: str) -> None:
    command = [sys.executable, str(example), "--out", str(out), *options]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}  # there are other tests beside this one
    done = subprocess.run(command, env=one_thread, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_resumes_bit_by_bit(example, tmp_path):
    run(example, tmp_path / "whole", "--max-steps", "20")
    run(example, tmp_path / "parts", "--max-steps", "10")
    half = load_file(tmp_path / "parts" / "model.safetensors")
    run(example, tmp_path / "parts", "--max-steps", "20", "--resume")
    whole, parts = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "parts"))
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    assert not all(torch.equal(half[name], whole[name]) for name in whole)


@pytest.mark.parametrize("example", EXAMPLES, ids=[path.stem for path in EXAMPLES])
def test_an_example_is_short(example):
    assert len(example.read_text().splitlines()) < 60

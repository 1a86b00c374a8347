"""The script of docs/distributed.md runs under torchrun."""

import subprocess
import sys

import pytest

from test_docs import NOT_RUN, ROOT

pytestmark = pytest.mark.slow


def test_the_script_of_the_page_runs(tmp_path):
    page = (ROOT / "docs" / "distributed.md").read_text()
    (script,) = [part.split("```")[0] for part in page.split(f"{NOT_RUN}\n```python\n")[1:]]
    (tmp_path / "train.py").write_text(script)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    subprocess.run(launch, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert (tmp_path / "checkpoint" / ".metadata").exists()

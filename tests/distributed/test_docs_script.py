"""The scripts of docs/distributed.md run under torchrun."""

import subprocess
import sys

import pytest

from test_docs import NOT_RUN, ROOT

pytestmark = pytest.mark.slow

PAGE = (ROOT / "docs" / "distributed.md").read_text()
SCRIPTS = [part.split("```")[0] for part in PAGE.split(f"{NOT_RUN}\n```python\n")[1:]]


@pytest.mark.parametrize("script", SCRIPTS, ids=["sharded", "compressed"])
def test_the_script_of_the_page_runs(script, tmp_path):
    (tmp_path / "train.py").write_text(script)
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "train.py"]
    subprocess.run(launch, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert (tmp_path / "checkpoint" / ".metadata").exists()

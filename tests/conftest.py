"""Settings of the whole suite."""

import os

import pytest
import torch

# Without a GPU, Triton's kernels run under its interpreter, which must be chosen before Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Tests run side by side, one process per core; more threads would only contend. Sums then also have one order.
torch.set_num_threads(1)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """Tests run wherever there is room, but those that start several processes on one worker."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            starts_several = nodeid.startswith(
                ("tests/distributed/", "tests/training/test_parallel.py", "tests/integrations/test_sharded.py")
            )
            return "several processes" if starts_several else nodeid

    return Scheduling(config, log)

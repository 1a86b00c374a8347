"""Settings of the whole suite."""

import os

import torch

# Without a GPU, Triton's kernels run under its interpreter, which must be chosen before Triton is imported.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# Tests run side by side, one process per core; more threads would only contend. Sums then also have one order.
torch.set_num_threads(1)

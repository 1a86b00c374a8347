"""Settings of the whole suite."""

import torch

# Tests run side by side, one process per core; more threads would only contend. Sums then also have one order.
torch.set_num_threads(1)

"""Optimizers with bad manners, to be named as module:Class."""

import torch


class Spoiler(torch.optim.SGD):
    """Leaves its updates in the gradients, and prints."""

    def step(self, closure=None):
        print("a line for each parameter")
        for group in self.param_groups:
            for param in group["params"]:
                param.grad.zero_()


class Failing(torch.optim.SGD):
    def step(self, closure=None):
        raise ArithmeticError("no step today\nand more")

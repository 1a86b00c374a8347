"""LDAdamW in Lightning."""

import csv

import lightning
import pytest
import torch
from by_hand import BATCH_SIZE, LR, are_equal, grad_scaler, largest_distance, train_by_hand, warmup
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from tiny_llama import model as tiny_model
from tiny_llama import rows
from torch.utils.data import DataLoader

from ldadam.integrations.lightning import SubspaceCallback, configure_ldadamw
from tolerances import TOLERANCES


class Module(lightning.LightningModule):
    def __init__(self, **options):
        super().__init__()
        self.llama, self.options = tiny_model(), options

    def training_step(self, batch):
        loss = self.llama(**batch).loss
        self.log("loss", loss)
        return loss

    def validation_step(self, batch):
        self.log("validation_loss", self.llama(**batch).loss)

    def configure_optimizers(self):
        return configure_ldadamw(self, lr=str(LR), schedule=warmup, rank="8", **self.options)


def fit(folder, *, validate: bool = False, **options) -> Module:
    settings = {"max_steps": 4, "accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    settings |= {"enable_progress_bar": False, "enable_model_summary": False, "val_check_interval": 2}
    trainer = lightning.Trainer(default_root_dir=folder, **(settings | options))
    module, loader = Module(), DataLoader(rows(), batch_size=BATCH_SIZE)
    trainer.fit(module, loader, loader if validate else None)
    return module


SETTINGS = {
    "validation between steps": ({"validate": True, "limit_val_batches": 1}, {}),
    "accumulation": ({"accumulate_grad_batches": 2}, {"accumulation": 2}),
    "bfloat16 autocast": ({"precision": "bf16-mixed"}, {"autocast": torch.bfloat16}),
    "float16 with a GradScaler": (
        {"plugins": MixedPrecision("16-mixed", "cpu", grad_scaler())},
        {"autocast": torch.float16, "waits_for_scaler": False},
    ),
}


@pytest.mark.parametrize(("of_lightning", "by_hand"), SETTINGS.values(), ids=SETTINGS)
def test_lightning_is_the_loop_by_hand_with_error_feedback_on(tmp_path, of_lightning, by_hand):
    """It passes a closure to each step, and sets gradients to None before a validation."""
    module = fit(tmp_path, **of_lightning)
    assert are_equal([module.llama, train_by_hand(4, schedule=warmup, **by_hand)])
    assert not are_equal([module.llama, train_by_hand(4, schedule=warmup, error_feedback=False, **by_hand)])


def test_clipping_is_that_of_the_loop_by_hand_but_for_the_order_of_a_sum(tmp_path):
    """Lightning sums up the norm in the order of the param groups."""
    module = fit(tmp_path, gradient_clip_val=0.5)
    by_hand, without = (
        train_by_hand(4, schedule=warmup, clip=0.5, error_feedback=error_feedback) for error_feedback in (True, False)
    )
    tolerance = TOLERANCES["float32 memory order"]
    assert largest_distance(module.llama, by_hand) < tolerance
    assert largest_distance(module.llama, without) > 100 * tolerance


def test_the_callback_logs_through_lightning_and_changes_no_number(tmp_path):
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    module = fit(tmp_path, logger=logger, log_every_n_steps=2, callbacks=[SubspaceCallback()])
    assert are_equal([module.llama, train_by_hand(4, schedule=warmup)])
    with open(f"{logger.log_dir}/metrics.csv") as file:
        records = [row for row in csv.DictReader(file) if row["ldadam/captured"]]
    assert len(records) == 2
    optimizer = module.optimizers().optimizer
    buffers = [state["error_buffer"].flatten() for state in optimizer.state.values() if "error_buffer" in state]
    norm = torch.cat(buffers).norm().item()
    assert float(records[-1]["ldadam/error_norm"]) == pytest.approx(norm, rel=TOLERANCES["float32 step"])


@pytest.mark.parametrize(("every", "log_every_n_steps"), [(1, 2), (3, 2), (2, 50), (None, 2)])
def test_the_callback_logs_once_at_each_multiple_of_its_own_interval(tmp_path, every, log_every_n_steps):
    """With accumulation, so that some batches are no step."""
    logger = CSVLogger(tmp_path, flush_logs_every_n_steps=1)
    options = {"logger": logger, "log_every_n_steps": log_every_n_steps, "accumulate_grad_batches": 2}
    fit(tmp_path, **options, callbacks=[SubspaceCallback(every=every)])
    with open(f"{logger.log_dir}/metrics.csv") as file:
        steps = [int(row["step"]) for row in csv.DictReader(file) if row.get("ldadam/captured")]
    assert steps == [step for step in range(1, 5) if step % (every or log_every_n_steps) == 0]


def test_the_callback_refuses_clipping(tmp_path):
    with pytest.raises(ValueError, match=r"before gradient_clip_val=0\.5 changes them"):
        fit(tmp_path, gradient_clip_val=0.5, callbacks=[SubspaceCallback()])

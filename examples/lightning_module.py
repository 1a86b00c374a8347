"""LDAdamW in Lightning, with accumulation, a schedule and resume from Lightning's own checkpoint.

python examples/lightning_module.py --max-steps 20 --out runs/lightning
"""

import lightning
import tiny_llama
from lightning.pytorch.callbacks import ModelCheckpoint
from safetensors.torch import save_file
from torch import Tensor
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from ldadam.integrations.lightning import SubspaceCallback, configure_ldadamw


class LanguageModel(lightning.LightningModule):
    """A Llama that predicts the next byte."""

    def __init__(self) -> None:
        super().__init__()
        self.llama = tiny_llama.model()

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        """The loss of a micro-batch."""
        loss = self.llama(**batch).loss
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> dict:
        """LDAdamW, and a warm-up of five steps."""
        return configure_ldadamw(
            self, lr=1e-2, rank=8, weight_decay=0.1, schedule=lambda opt: LambdaLR(opt, lambda s: min(1, (s + 1) / 5))
        )


def main() -> None:
    """Train, or go on with a training."""
    options = tiny_llama.arguments(__doc__)
    trainer = lightning.Trainer(
        max_steps=options.max_steps,
        accumulate_grad_batches=2,
        accelerator="cpu",
        logger=False,
        # Of an epoch that `max_steps` has ended, a checkpoint made at its end would repeat a batch.
        callbacks=[SubspaceCallback(), ModelCheckpoint(options.out, filename="{step}", every_n_train_steps=10)],
    )
    module = LanguageModel()
    rows = DataLoader(tiny_llama.rows(40), batch_size=4)
    checkpoint = options.out / "step=10.ckpt" if options.resume else None
    trainer.fit(module, rows, ckpt_path=checkpoint, weights_only=True)
    save_file(module.llama.state_dict(), options.out / "model.safetensors")


if __name__ == "__main__":
    main()

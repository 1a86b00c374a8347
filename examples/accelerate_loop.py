"""LDAdamW in a loop of one's own with Hugging Face Accelerate: nothing but its constructor changes.

python examples/accelerate_loop.py --max-steps 20 --out runs/accelerate
"""

import tiny_llama
from accelerate import Accelerator
from accelerate.utils import set_seed
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader

from ldadam import LDAdamW, lowrank_param_groups


def main() -> None:
    """Train, or go on with a training."""
    options = tiny_llama.arguments(__doc__)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    set_seed(0)
    model = tiny_llama.model()
    optimizer = LDAdamW(lowrank_param_groups(model, rank=8, weight_decay=0.1), lr=1e-2)
    scheduler = LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 5))
    rows = DataLoader(tiny_llama.rows(), batch_size=4)
    model, optimizer, scheduler, rows = accelerator.prepare(model, optimizer, scheduler, rows)

    step, batches = 0, rows
    if options.resume:
        accelerator.load_state(options.out / "state")
        step = scheduler.scheduler.last_epoch
        batches = accelerator.skip_first_batches(rows, 2 * step % len(rows))
    while step < options.max_steps:
        for batch in batches:
            with accelerator.accumulate(model):
                loss = model(**batch).loss
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                scheduler.step()
                optimizer.zero_grad()
            step += accelerator.sync_gradients
            if step == options.max_steps:
                break
        batches = rows
    accelerator.print(f"step {step}: loss {loss.item():.4f}")
    accelerator.save_state(options.out / "state")
    accelerator.save_model(model, options.out)


if __name__ == "__main__":
    main()

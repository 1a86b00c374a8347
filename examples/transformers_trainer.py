"""LDAdamW in the Trainer of Hugging Face Transformers, with accumulation, a schedule, logging and resume.

python examples/transformers_trainer.py --max-steps 20 --out runs/trainer
"""

import tiny_llama
from transformers import Trainer, TrainingArguments

from ldadam.integrations.transformers import LDAdamWFactory, SubspaceCallback


def main() -> None:
    """Train, or go on with a training."""
    options = tiny_llama.arguments(__doc__)
    args = TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.max_steps,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=5,
        weight_decay=0.1,
        max_grad_norm=1.0,
        logging_steps=5,
        save_steps=10,
        use_cpu=True,
        report_to="none",
    )
    trainer = Trainer(
        tiny_llama.model(),
        args,
        train_dataset=tiny_llama.rows(),
        optimizer_cls_and_kwargs=(
            LDAdamWFactory,
            {"lr": args.learning_rate, "weight_decay": args.weight_decay, "rank": 8},
        ),
    )
    trainer.add_callback(SubspaceCallback(trainer))
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model(str(options.out))


if __name__ == "__main__":
    main()

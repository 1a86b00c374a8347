"""LDAdamW in TRL's DPOTrainer, whose constructor has no argument for it: it is set afterwards.

python examples/trl_dpo.py --max-steps 20 --out runs/dpo
"""

import tiny_llama
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from ldadam.integrations.transformers import LDAdamWFactory, SubspaceCallback


def preferences() -> Dataset:
    """The text as it goes on is preferred to the continuation of the next one."""
    texts = tiny_llama.texts()
    ends = [text[32:] for text in texts]
    return Dataset.from_dict(
        {"prompt": [text[:32] for text in texts], "chosen": ends, "rejected": [*ends[1:], ends[0]]}
    )


def main() -> None:
    """Train, or go on with a training."""
    options = tiny_llama.arguments(__doc__)
    args = DPOConfig(
        output_dir=str(options.out),
        max_steps=options.max_steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        max_length=64,
        logging_steps=5,
        save_steps=10,
        bf16=False,
        use_cpu=True,
        report_to="none",
    )
    trainer = DPOTrainer(
        tiny_llama.model(),
        ref_model=tiny_llama.model(),
        args=args,
        train_dataset=preferences(),
        processing_class=tiny_llama.tokenizer(),
    )
    trainer.optimizer_cls_and_kwargs = (LDAdamWFactory, {"lr": args.learning_rate, "rank": 8})
    trainer.add_callback(SubspaceCallback(trainer))
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model(str(options.out))


if __name__ == "__main__":
    main()

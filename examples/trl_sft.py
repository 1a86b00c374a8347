"""LDAdamW in TRL's SFTTrainer, which takes the same argument as the Trainer of Transformers.

python examples/trl_sft.py --max-steps 20 --out runs/sft
"""

import tiny_llama
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from ldadam.integrations.transformers import LDAdamWFactory, SubspaceCallback


def main() -> None:
    """Train, or go on with a training."""
    options = tiny_llama.arguments(__doc__)
    args = SFTConfig(
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
    trainer = SFTTrainer(
        tiny_llama.model(),
        args=args,
        train_dataset=Dataset.from_dict({"text": tiny_llama.texts()}),
        processing_class=tiny_llama.tokenizer(),
        optimizer_cls_and_kwargs=(LDAdamWFactory, {"lr": args.learning_rate, "rank": 8}),
    )
    trainer.add_callback(SubspaceCallback(trainer))
    trainer.train(resume_from_checkpoint=options.resume)
    trainer.save_model(str(options.out))


if __name__ == "__main__":
    main()

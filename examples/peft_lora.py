"""LoRA on attention, full-parameter LDAdamW on `down_proj`, and the rest of the model frozen.

python examples/peft_lora.py --max-steps 20 --out runs/lora
"""

import tiny_llama
from peft import LoraConfig, get_peft_model
from transformers import Trainer, TrainingArguments

from ldadam.integrations.transformers import LDAdamWFactory


def main() -> None:
    """Train, or go on with a training."""
    options = tiny_llama.arguments(__doc__)
    args = TrainingArguments(
        output_dir=str(options.out),
        max_steps=options.max_steps,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        save_steps=10,
        use_cpu=True,
        report_to="none",
    )
    # PEFT saves the adapter and `modules_to_save`; weights that are merely unfrozen would be in no checkpoint.
    adapter = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], modules_to_save=["down_proj"])
    model = get_peft_model(tiny_llama.model(), adapter)
    # LoRA's factors are small and get dense AdamW; `describe(trainer.optimizer.optimizer)` shows it.
    choice = (LDAdamWFactory, {"lr": args.learning_rate, "rank": 8})
    trainer = Trainer(model, args, train_dataset=tiny_llama.rows(), optimizer_cls_and_kwargs=choice)
    trainer.train(resume_from_checkpoint=options.resume)
    model.merge_and_unload().save_pretrained(options.out)


if __name__ == "__main__":
    main()

"""What two processes do for test_sharded.py: trainings that a trainer shards with FSDP2, each on half of a batch."""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from by_hand import BATCH_SIZE, LR, batches
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import ModelParallelStrategy
from tiny_llama import model as tiny_model
from tiny_llama import rows
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, DistributedSampler
from trainers import NUM_STEPS, dpo_trainer, peft_trainer, plain_trainer, sft_trainer
from transformers import Trainer

from ldadam import LDAdamW, lowrank_param_groups
from ldadam.integrations.lightning import SubspaceCallback as LightningSubspaceCallback
from ldadam.integrations.lightning import configure_ldadamw
from ldadam.integrations.transformers import SubspaceCallback

Weights = dict[str, Tensor]


def train_sharded(name: str, folder: Path, options: dict[str, Any]) -> tuple[Weights, Weights]:
    """The whole weights after some steps at once, and of a training that resumes half of them.

    Args:
        name: of `TRAINERS`.
        options: of LDAdamW.
    """
    with launched():
        train = TRAINERS[name]
        at_once = train(NUM_STEPS, folder / "at_once", None, options)
        half = train(NUM_STEPS // 2, folder / "half", None, options)
        assert not all(torch.equal(half[key], at_once[key]) for key in half)
        return at_once, train(NUM_STEPS, folder / "resumed", folder / "half", options)


@contextmanager
def launched() -> Iterator[None]:
    """The environment that a launcher gives each process of this group."""
    rank, size = dist.get_rank(), dist.get_world_size()
    ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    before = dict(os.environ)
    os.environ.update({name: str(value) for name, value in ranks.items()})
    try:
        yield
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
        os.environ.clear()
        os.environ.update(before)


def pretend_accelerators() -> None:
    """Accelerate has FSDP for accelerators only: it is told that these CPUs are some, and does all the rest itself."""
    AcceleratorState._reset_state(reset_partial_state=True)
    PartialState(cpu=True).distributed_type = DistributedType.MULTI_GPU


def whole_weights(model: nn.Module) -> Weights:
    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True))


def with_accelerate(num_steps: int, folder: Path, resume: Path | None, options: dict[str, Any]) -> Weights:
    pretend_accelerators()
    plugin = FullyShardedDataParallelPlugin(
        fsdp_version=2, auto_wrap_policy="transformer_based_wrap", cpu_ram_efficient_loading=False
    )
    accelerator = Accelerator(cpu=True, fsdp_plugin=plugin)
    model = tiny_model()
    optimizer = LDAdamW(lowrank_param_groups(model, rank=8), lr=LR, **options)
    before = {id(param) for group in optimizer.param_groups for param in group["params"]}
    model, optimizer = accelerator.prepare(model, optimizer)
    after = [param for group in optimizer.param_groups for param in group["params"]]
    assert all(isinstance(param, DTensor) and id(param) not in before for param in after)
    if resume is not None:
        accelerator.load_state(str(resume))
    share = BATCH_SIZE // dist.get_world_size()
    mine = slice(dist.get_rank() * share, (dist.get_rank() + 1) * share)
    for step, batch in zip(range(num_steps), batches(), strict=False):
        if resume is None or step >= NUM_STEPS // 2:
            accelerator.backward(model(**{key: value[mine] for key, value in batch.items()}).loss)
            optimizer.step()
            optimizer.zero_grad()
    accelerator.save_state(str(folder))
    return whole_weights(model)


def with_trainer(
    build: Callable[..., Trainer], num_steps: int, folder: Path, resume: Path | None, options: dict[str, Any]
) -> Weights:
    pretend_accelerators()
    trainer = build(
        folder,
        optimizer=options,
        max_steps=num_steps,
        per_device_train_batch_size=BATCH_SIZE // dist.get_world_size(),
        save_strategy="steps",
        save_steps=NUM_STEPS // 2,
        fsdp=True,
        accelerator_config={"use_configured_state": True},
    )
    trainer.add_callback(SubspaceCallback(trainer))
    trainer.train(resume_from_checkpoint=resume and str(resume / f"checkpoint-{NUM_STEPS // 2}"))
    assert all(isinstance(param, DTensor) for group in trainer.optimizer.param_groups for param in group["params"])
    assert any("ldadam/captured" in record for record in trainer.state.log_history)
    return whole_weights(trainer.model)


class ShardedModule(lightning.LightningModule):
    def __init__(self, options: dict[str, Any]):
        super().__init__()
        self.llama, self.options = tiny_model(), options

    def configure_model(self) -> None:
        if not isinstance(next(self.llama.parameters()), DTensor):
            for layer in self.llama.model.layers:
                fully_shard(layer, mesh=self.device_mesh["data_parallel"])
            fully_shard(self.llama, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: dict[str, Tensor]) -> Tensor:
        return self.llama(**batch).loss

    def configure_optimizers(self) -> dict:
        return configure_ldadamw(self, lr=LR, rank=8, **self.options)


def with_lightning(num_steps: int, folder: Path, resume: Path | None, options: dict[str, Any]) -> Weights:
    module = ShardedModule(options)
    trainer = lightning.Trainer(
        default_root_dir=folder,
        max_steps=num_steps,
        accelerator="cpu",
        devices=dist.get_world_size(),
        strategy=ModelParallelStrategy(data_parallel_size=dist.get_world_size(), tensor_parallel_size=1),
        plugins=[LightningEnvironment()],
        callbacks=[LightningSubspaceCallback(every=1)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Within an epoch Lightning begins the data anew, and its own sampler would shuffle.
    data = rows() if resume is None else rows()[NUM_STEPS // 2 * BATCH_SIZE :]
    sampler = DistributedSampler(data, shuffle=False)
    loader = DataLoader(data, batch_size=BATCH_SIZE // dist.get_world_size(), sampler=sampler)
    trainer.fit(module, loader, ckpt_path=resume and resume / "last", weights_only=True)
    trainer.save_checkpoint(folder / "last")
    return whole_weights(module.llama)


BUILDERS = {"Trainer": plain_trainer, "PEFT": peft_trainer, "SFT": sft_trainer, "DPO": dpo_trainer}
TRAINERS: dict[str, Callable[..., Weights]] = {
    "Accelerate": with_accelerate,
    "Lightning": with_lightning,
    **{name: partial(with_trainer, build) for name, build in BUILDERS.items()},
}

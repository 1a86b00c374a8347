"""What is compared, as data: the work, the optimizers with the learning rates to try, and the seeds."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldadam.finetune import config as finetune_config
from ldadam.training import config as pretrain_config
from ldadam.training.errors import UsageError
from ldadam.training.optimizers import find_optimizer
from ldadam.training.run_config import RunConfig

KINDS: dict[str, type[RunConfig]] = {
    kind.subcommand: kind for kind in (pretrain_config.PretrainConfig, finetune_config.FinetuneConfig)
}
# What may differ between two descriptions of the same run.
MAY_DIFFER = ("report", "no_report", "threads", "save_every", "keep_checkpoints", "parallel_timeout", "out")
RESOLVE = {"pretrain": pretrain_config.resolve, "finetune": finetune_config.resolve}


@dataclass(frozen=True)
class Contestant:
    """An optimizer with settings of its own.

    Attributes:
        optimizer: as `--optimizer` calls it.
        lrs: learning rates to try with the first seed; the best of them meets the other seeds.
        settings: beside those of the study, by the names of the run's configuration.
        name: tells two contestants of the same optimizer apart; by default the optimizer's.
    """

    optimizer: str
    lrs: tuple[float, ...]
    settings: Mapping[str, Any] = field(default_factory=dict, hash=False)
    name: str = ""

    @property
    def title(self) -> str:
        """What tables and folders call it."""
        return self.name or self.optimizer


@dataclass(frozen=True)
class Trial:
    """One run of a study."""

    contestant: Contestant
    lr: float
    seed: int

    @property
    def name(self) -> str:
        """Of the run's folder."""
        return f"{self.contestant.title.replace(':', '-')}-lr{self.lr}-seed{self.seed}"


@dataclass(frozen=True)
class Study:
    """The same work for several optimizers.

    Attributes:
        name: of its folder and its results.
        about: a sentence on where its settings come from.
        subcommand: of `ldadam`, "pretrain" or "finetune", which makes the runs.
        settings: what all runs share, by the names of that subcommand's configuration.
        contestants: the optimizers.
        seeds: the first one chooses the learning rates.
        dense_lr: learning rate of embeddings, heads and vectors, whatever is tried for matrices, but for contestants
            with a `dense_lr_scale` of their own, a multiple of what is tried, and for LoRA, which has no such weights.
            None leaves it to the multiple for all.
    """

    name: str
    about: str
    subcommand: str
    settings: Mapping[str, Any]
    contestants: tuple[Contestant, ...]
    seeds: tuple[int, ...] = (0,)
    dense_lr: float | None = None

    def __post_init__(self) -> None:
        titles = [contestant.title for contestant in self.contestants]
        if twice := sorted({title for title in titles if titles.count(title) > 1}):
            raise UsageError(f"{self.name} compares {twice[0]} twice: give each optimizer once")
        if not self.seeds or not all(contestant.lrs for contestant in self.contestants):
            raise UsageError(f"{self.name} needs at least one seed, and a learning rate for each optimizer")

    def sweep(self) -> list[Trial]:
        """The runs that choose the learning rates."""
        return [Trial(contestant, lr, self.seeds[0]) for contestant in self.contestants for lr in contestant.lrs]

    def repeats(self, contestant: Contestant, lr: float) -> list[Trial]:
        """The runs of the other seeds, at the learning rate that was chosen."""
        return [Trial(contestant, lr, seed) for seed in self.seeds[1:]]

    def possible(self) -> list[Trial]:
        """All runs that there may be, whichever learning rates are chosen."""
        return [
            Trial(contestant, lr, seed)
            for contestant in self.contestants
            for lr in contestant.lrs
            for seed in self.seeds
        ]

    @property
    def num_runs(self) -> int:
        """How many runs there are, if none fails."""
        return len(self.sweep()) + len(self.contestants) * (len(self.seeds) - 1)

    def settings_of(self, trial: Trial) -> dict[str, Any]:
        """What the run is told, but for its folder."""
        own = {"optimizer": trial.contestant.optimizer, **trial.contestant.settings}
        given = {**self.settings, **own, "lr": trial.lr, "seed": trial.seed, "report": False}
        has_ratio = "dense_lr_scale" not in find_optimizer(trial.contestant.optimizer).foreign_options()
        if self.dense_lr is not None and has_ratio and "dense_lr_scale" not in own:
            given["dense_lr_scale"] = self.dense_lr / trial.lr
        return {name: value for name, value in given.items() if value is not None}

    def config_of(self, trial: Trial) -> RunConfig:
        """The run's whole configuration.

        Raises:
            UsageError: a setting is unknown or out of range, or has no effect on the optimizer.
        """
        return RESOLVE[self.subcommand](self.settings_of(trial))


def as_options(settings: Mapping[str, Any]) -> list[str]:
    """Settings as `ldadam pretrain` and `ldadam finetune` read them from the command line."""
    options = []
    for name, value in settings.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            options.append(f"--{option}" if value else f"--no-{option}")
        elif value is not None:
            options += [f"--{option}", str(value)]
    return options


def what_is_run(command: str) -> frozenset[tuple[str, ...]]:
    """The options of a recorded command, but for those that may differ between two descriptions of the same run."""
    options: list[list[str]] = []
    for word in shlex.split(command):
        if word.startswith("--") or not options:
            options.append([word])
        else:
            options[-1].append(word)
    kept = (option for option in options if option[0].removeprefix("--").replace("-", "_") not in MAY_DIFFER)
    return frozenset(map(tuple, kept))


def other_package(trial: Trial, recorded: str | None) -> str | None:
    """The version of its optimizer's package that is installed, if a run was made with another one that it records."""
    if recorded is None:
        return None
    installed = find_optimizer(trial.contestant.optimizer).package_version
    return installed if installed != recorded else None


def command_line(study: Study, settings: Mapping[str, Any], *, out: str, processes: int = 1) -> str:
    """The command that makes a run with these settings by itself, for people to read and to copy."""
    program = ["ldadam"] if processes == 1 else ["torchrun", "--nproc-per-node", str(processes), "-m", "ldadam"]
    return shlex.join([*program, study.subcommand, *as_options({**settings, "out": out})])

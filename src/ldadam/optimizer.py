"""`LDAdamW`: param groups, lazy state, `step`, and state dicts that come back as they were saved."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import groupby
from types import MappingProxyType
from typing import Any, overload

import torch
from torch import Tensor
from torch.distributed import ProcessGroup
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from ldadam import backends, distributed
from ldadam.backends.update import ParamUpdate
from ldadam.hyperparameters import NAMES, Hyperparameters, resolve
from ldadam.layout import MatrixLayout, matrix_layout
from ldadam.param_groups import split_named_group, warn_about_dense_matrices
from ldadam.state import check_group_sizes, check_state, count_steps_, is_known_to_host

DEFAULTS = Hyperparameters()
DEFAULT_VALUES = {name: getattr(DEFAULTS, name) for name in NAMES}


class LDAdamW(Optimizer):
    """Adam with moments in a moving low-rank subspace, and generalized error feedback.

    Matrices W (m x n, the projected side first) keep a basis U (m x rank), moments (rank x n) and an error buffer E
    (m x n); everything else keeps the state of AdamW. State is created at a parameter's first gradient, in float32
    (float64 for float64 parameters) but for the error buffer.

    Every hyperparameter is also a key of a param group. Tensors of at least two dimensions are low-rank when both sides
    exceed the rank; of three dimensions, a stack of matrices; of four and more, flattened to (out, rest). With
    `named_parameters()` or `lowrank_param_groups(model)`, embeddings, output heads, norms, biases, routers and
    LoRA factors are dense as well. `describe(optimizer)` shows each choice.

    Args:
        params: parameters, named parameters, or param groups.
        lr: learning rate; a number or a tensor with one element.
        betas: decay of the first and second moment.
        eps: added to the root of the second moment.
        weight_decay: decoupled: multiplied by `lr`, then by the weight.
        rank: columns of the basis; a fraction between 0 and 1 of the shorter side; or None for dense AdamW.
        rho: how far the subspace follows the momentum (1) rather than the present gradient (0); below 1.
        proj_type: the projected side: "std" the shorter, "reverse_std" the longer, "left" rows, "right" columns.
        proj_method: how the basis moves: "power_iteration", "svd" or "svd_lowrank".
        error_feedback: whether what the subspace misses is kept in E and added to the next gradient.
        error_dtype: storage of E: "float32", "bfloat16", "float64", or None for the parameter's dtype; or codes in
            blocks of 64 entries of a row, "int8" (8.25 bits an entry) or "int4" (4.25). It may change between steps.
        update_interval: steps from one move of the subspace to the next; between them the basis is kept.
        scaled_residual: whether what the subspace misses of the present gradient moves the weights as well, each column
            scaled as Adam scales what the subspace sees of it. Needs no state, but `step_in_backward` then accumulates
            in `.grad`; not possible with compressed gradients.
        maximize: ascend instead of descend.
        backend: how a step is computed: "eager" is the page, one matrix at a time; "batched" is six products with
            torch's kernels; "compiled" the page through torch.compile; "triton" six products with kernels for CUDA;
            "auto" picks, and `describe` says what.
        capturable: keep `step` on the device, so that `step()` can be captured in a CUDA graph, after a first step
            outside of it. Schedules then need a tensor `lr`.
        skip_nonfinite: leave a parameter and its state as they are in a step whose gradient has a NaN or infinity,
            decided on the device; state `num_skipped` counts these steps. Otherwise they spread, as in torch.
        stochastic_rounding: round bfloat16 and float16 weights up or down by chance after each step, without bias, so
            that updates too small for nearest rounding count on average. The chance depends on the step, the entry
            and the parameter's place in the groups alone: a resumed run and replicas have the same bits. Without
            effect on float32 and float64 weights, whose rounding is far below any update.

    Raises:
        TypeError: `params` is a module.
        ValueError: a hyperparameter is out of range, or a group has an option that looks misspelt.

    Examples:
        >>> import torch
        >>> from ldadam import LDAdamW
        >>> model = torch.nn.Linear(64, 32)
        >>> optimizer = LDAdamW(model.named_parameters(), lr=1e-3, rank=8)
        >>> model(torch.randn(4, 64)).square().mean().backward()
        >>> optimizer.step()
        >>> optimizer.state[model.weight]["exp_avg"].shape
        torch.Size([8, 64])

    Source: arXiv 2410.16103, Algorithm 1; `ldadam.algorithm` has it as code.
    """

    # Groups of ranks whose gradients of a parameter differ when `step` is called; `compress_gradients` adds to it.
    replicas: Mapping[Tensor, tuple[ProcessGroup, ...]] = MappingProxyType({})

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = DEFAULTS.lr,
        betas: tuple[float, float] = DEFAULTS.betas,
        eps: float = DEFAULTS.eps,
        weight_decay: float = DEFAULTS.weight_decay,
        *,
        rank: int | float | None = DEFAULTS.rank,
        rho: float = DEFAULTS.rho,
        proj_type: str = DEFAULTS.proj_type,
        proj_method: str = DEFAULTS.proj_method,
        error_feedback: bool = DEFAULTS.error_feedback,
        error_dtype: str | torch.dtype | None = DEFAULTS.error_dtype,
        update_interval: int = DEFAULTS.update_interval,
        scaled_residual: bool = DEFAULTS.scaled_residual,
        maximize: bool = DEFAULTS.maximize,
        backend: str = DEFAULTS.backend,
        capturable: bool = DEFAULTS.capturable,
        skip_nonfinite: bool = DEFAULTS.skip_nonfinite,
        stochastic_rounding: bool = DEFAULTS.stochastic_rounding,
    ):
        arguments = locals()
        if isinstance(params, torch.nn.Module) and not isinstance(params, torch.nn.ParameterList):
            raise TypeError("LDAdamW takes parameters, got a module: give it lowrank_param_groups(model, rank=...)")
        super().__init__(params, {name: arguments[name] for name in NAMES})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; one of named parameters becomes a low-rank and a dense group.

        Raises:
            ValueError: a hyperparameter of the group is out of range, or looks misspelt; then nothing is added.
        """
        num_before = len(self.param_groups)
        try:
            for group in split_named_group(param_group, default_rank=self.defaults["rank"]):
                super().add_param_group(group)
                index = len(self.param_groups) - 1
                self.param_groups[index]["error_dtype"] = resolve(self.param_groups[index], index).error_dtype
                warn_about_dense_matrices(self.param_groups[index], index)
        except Exception:
            del self.param_groups[num_before:]
            raise

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Move every parameter that has a gradient by one step.

        Args:
            closure: recomputes and returns the loss, with gradients; run before gradients are read.

        Returns:
            What `closure` returned.

        Raises:
            RuntimeError: a gradient is sparse or complex.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self.step_params({index: range(len(group["params"])) for index, group in enumerate(self.param_groups)})
        return loss

    def step_params(self, positions: Mapping[int, Iterable[int]]) -> None:
        """Move parameters that have a gradient by one step: those at `positions` of each param group."""
        hypers = {index: resolve(self.param_groups[index], index) for index in positions}
        asked = {index: [*self._with_gradient(index, positions[index], hyper)] for index, hyper in hypers.items()}
        distributed.refuse_different_steps([update for some in asked.values() for update in some], self.replicas)
        updates = [update for index, hyper in hypers.items() for update in self._counted(asked[index], hyper)]
        distributed.average_gradients_((update.param for update in updates if update.layout is None), self.replicas)
        localized = distributed.localize_all(updates, self.replicas)
        own = [update for update in localized if update.shards is None]
        for _, of_group in groupby(own, key=lambda update: id(update.hyper)):
            chosen = list(of_group)
            backends.step_(chosen, backend=chosen[0].hyper.backend)
        distributed.step_([update for update in localized if update.shards is not None])

    def layouts(self) -> dict[Tensor, MatrixLayout | None]:
        """How each parameter is projected; None for dense AdamW."""
        groups = [(group["params"], resolve(group, index)) for index, group in enumerate(self.param_groups)]
        return {param: layout_of(param, hyper) for params, hyper in groups for param in params}

    def accumulate_(self, index: int, position: int) -> bool:
        """Add the gradient of one parameter to its error buffer, from where its next step takes it.

        Returns:
            Whether it was added. Not, where there is no buffer to add to; and not where only the device knows whether
            a step counts, since a sum that is not finite must be refused as a whole, and the buffer with it.
        """
        hyper = resolve(self.param_groups[index], index)
        if layout_of(self._param(index, position), hyper) is None or not hyper.error_feedback or hyper.device_step:
            return False
        if hyper.scaled_residual:
            return False  # it needs the gradient apart from what the buffer holds
        for one in self._with_gradient(index, [position], hyper):
            sign = -1 if hyper.maximize else 1
            distributed.accumulate_(one.state, one.param, one.grad, sign=sign, name=one.name)
        return True

    def _param(self, index: int, position: int) -> Tensor:
        return self.param_groups[index]["params"][position]

    def _counted(self, asked: Iterable[ParamUpdate], hyper: Hyperparameters) -> list[ParamUpdate]:
        """The updates that are steps, each counted."""
        found = [one for one in asked if not _is_priming(one, replicas=self.replicas.get(one.param, ()))]
        steps = count_steps_([one.state["step"] for one in found], capturable=hyper.capturable)
        return [
            replace(one, step=step, is_first=one.is_first or _is_one(step))
            for one, step in zip(found, steps, strict=True)
        ]

    def _name(self, index: int, position: int) -> str:
        return param_name(self.param_groups[index], index, position)

    def _with_gradient(self, index: int, positions: Iterable[int], hyper: Hyperparameters) -> Iterable[ParamUpdate]:
        """What there is to do for each of these parameters that has a gradient; its step is not counted yet."""
        first = sum(len(group["params"]) for group in self.param_groups[:index])
        for position in positions:
            param = self._param(index, position)
            grad = param.grad
            if grad is None:
                continue
            name = self._name(index, position)
            _check_gradient(param, name=name)
            layout = layout_of(param, hyper)
            distributed.refuse_replicas(param, layout, hyper, self.replicas.get(param, ()), name=name)
            state = self.state[param]
            is_new = not state
            if is_new:
                distributed.refuse_unsupported(param, layout, hyper, name=name)
                distributed.refuse_forgotten(param, self.replicas, name=name)
                state.update(distributed.create_state(param, layout, hyper))
            else:
                distributed.follow_changes_(state, param, layout, hyper, name=name)
            yield ParamUpdate(
                param, grad, state, 0.0, hyper, layout, is_first=is_new, number=first + position, name=name
            )

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned; tensors keep the dtypes they were saved with.

        `torch.optim.Optimizer` would cast state to the parameter's dtype, which ruins float32 moments of bfloat16
        parameters.

        Args:
            state_dict: from `LDAdamW.state_dict`, of an optimizer with the same parameters in the same order.

        Raises:
            ValueError: groups, hyperparameters or shapes do not fit; then nothing has changed.
            NotImplementedError: the parameters are sharded in a way that the saved options have no step for.
        """
        placed: dict[Tensor, dict[str, Tensor]] = {}

        def hold_state(_: Optimizer, final: dict[str, Any]) -> dict[str, Any]:
            placed.update(self._fitting_state(final))
            return {**final, "state": {}}

        def place_state(_: Optimizer) -> None:
            self.state.update(placed)

        # As the last pre-hook it sees what earlier hooks made of the state, and as the first post-hook it hands later
        # ones a complete optimizer.
        with (
            self.register_load_state_dict_pre_hook(hold_state),
            self.register_load_state_dict_post_hook(place_state, prepend=True),
        ):
            super().load_state_dict(state_dict)

    def _fitting_state(self, state_dict: dict[str, Any]) -> dict[Tensor, dict[str, Tensor]]:
        """Copies of the saved state, by parameter, checked against it and moved to its device."""
        groups, saved_groups = self.param_groups, state_dict["param_groups"]
        check_group_sizes(saved_groups, groups)
        unclaimed = dict(state_dict["state"])
        placed = {}
        for index, (group, saved) in enumerate(zip(groups, saved_groups, strict=True)):
            hyper = resolve({**DEFAULT_VALUES, **saved}, index)
            for position, (param, saved_id) in enumerate(zip(group["params"], saved["params"], strict=True)):
                if saved_id not in unclaimed:
                    continue
                values = unclaimed.pop(saved_id)
                layout, name = layout_of(param, hyper), param_name(group, index, position)
                check_state(values, param, layout, name=name)
                distributed.refuse_unsupported(param, layout, hyper, name=name)
                placed[param] = {
                    key: distributed.place(param, layout, key, value)
                    if _lives_on_device(key, hyper)
                    else value.to("cpu", copy=True)
                    for key, value in values.items()
                }
        if unclaimed:
            raise ValueError(f"the loaded state has parameters {sorted(unclaimed)}, which are in none of its groups")
        return placed

    def __getstate__(self) -> dict[str, Any]:
        """What is copied or pickled.

        Raises:
            RuntimeError: under `compress_gradients`, of which a copy would know nothing and train on alone.
        """
        if self.replicas:
            raise RuntimeError(
                "an optimizer of compress_gradients cannot be copied or pickled, since its process groups cannot: copy "
                "or save its state_dict(), and call compress_gradients for the other optimizer"
            )
        return super().__getstate__()

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill in hyperparameters that an older version did not have."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in DEFAULT_VALUES.items():
                group.setdefault(name, value)


def layout_of(param: Tensor, hyper: Hyperparameters) -> MatrixLayout | None:
    """How a parameter of a group with these hyperparameters is projected; None for dense AdamW."""
    return matrix_layout(param.shape, rank=hyper.rank, proj_type=hyper.proj_type)


def param_name(group: dict[str, Any], index: int, position: int) -> str:
    """The parameter's own name where it is known, else its place in the groups."""
    if "param_names" in group:
        return group["param_names"][position]
    return f"parameter {position} of param group {index}"


def _lives_on_device(key: str, hyper: Hyperparameters) -> bool:
    return key != "step" or hyper.device_step


def _is_priming(update: ParamUpdate, *, replicas: tuple[ProcessGroup, ...]) -> bool:
    """Whether this is no step but a request for state: a first gradient of zero, at a learning rate of zero.

    An error buffer that is not empty before the first step holds gradients: those of micro-batches.

    `torch.distributed.checkpoint` creates the state of a fresh optimizer that way. A step counted here would shift
    the bias correction of the whole run.
    """
    if not update.hyper.has_zero_lr:
        return False
    state = update.state
    is_known = is_known_to_host(state["step"], capturable=update.hyper.capturable)
    if not (update.is_first or (is_known and state["step"].item() == 0)):
        return False
    summed = [update.grad, *(state[key] for key in ("error_buffer",) if key in state)]
    return all(distributed.is_zero(one, replicas=replicas) for one in summed)


def _is_one(step: float | Tensor) -> bool:
    """Whether the host knows this to be a first step; it does not look at a count that the device keeps."""
    return not isinstance(step, Tensor) and step == 1


def _check_gradient(param: Tensor, *, name: str) -> None:
    if param.grad is None or (param.grad.layout == torch.strided and not param.grad.is_complex()):
        return
    kind = "complex" if param.grad.is_complex() else "sparse"
    raise RuntimeError(
        f"LDAdamW needs dense real gradients; that of {name}, of shape {tuple(param.shape)}, is {kind}. "
        + ("Use torch.optim.AdamW for it." if kind == "complex" else "Build its embedding with sparse=False.")
    )

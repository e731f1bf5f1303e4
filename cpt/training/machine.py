"""What a plan becomes on the devices that are there: model, optimizer, shardings, and the compiled update."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cpt.models import base
from cpt.optimizers import building as optimizers
from cpt.optimizers.policy import apply_policy
from cpt.plan import RunPlan
from cpt.training.ahead import CompiledAhead
from cpt.training.requests import asked
from cpt.training.sharding import batch_sharding, optimizer_shardings, parameter_shardings, replicate, run_mesh
from cpt.training.state import State, Sums
from cpt.training.step import jit_train_step

Switch = Callable[[State], State]


@dataclass(frozen=True)
class Machine:
    """A plan on its devices; nothing in it changes while the run goes on.

    Attributes:
      abstract: shapes, dtypes and shardings of the state.
      given: the same of what else the update is given: batch, learning rate, multipliers, `extra`.
      update: `(state, batch, lr, multipliers_K, extra) -> (state, sums)`; the state is donated.
      ahead: the update where it is compiled ahead of its first call, for exactly what `abstract` and `given` say.
      switch: what the optimizer policy of each phase does to the state, by the step at which the phase begins.
    """

    plan: RunPlan
    mesh: Mesh
    model: base.Model
    tx: Any
    abstract: State
    given: tuple[Any, ...]
    update: Callable[..., Any]
    switch: dict[int, Switch]
    ahead: CompiledAhead | None = None

    def inputs(self, step: int, lr: float, limits: tuple[float, float] | None) -> tuple[Any, ...]:
        """What update `step` is given after its batch: learning rate, loss multipliers, and what else varies.

        Args:
          limits: of the guard, above which an update is a spike; None for none.
        """
        extra = {k: np.float32(v) for k, v in self.plan.hyper(step).items()} if self.plan.varies else {}
        if self.plan.spec.guard.judges:
            loss, norm = limits or (math.inf, math.inf)
            extra |= {"loss_limit": np.float32(loss), "norm_limit": np.float32(norm)}
        return replicate(self.mesh, (np.float32(lr), multipliers(self.plan, step), extra))

    def dispatch(
        self, step: int, state: State, batch: dict[str, Any], lr: float, limits: tuple[float, float] | None
    ) -> tuple[State, Sums]:
        """Dispatch update `step`; the state that is given is gone.

        Args:
          batch: of `put_batch`.
        """
        given = self.inputs(step, lr, limits)
        with jax.transfer_guard_host_to_device("allow"):  # in a process alone, it is the update that moves them
            return (self.ahead or self.update)(state, batch, *given)

    def compiling(self) -> Machine:
        """The same, whose update a thread compiles from now on."""
        return replace(self, ahead=CompiledAhead(self.lower()))

    def lower(self) -> jax.stages.Lowered:
        """The update before the compiler; nothing is allocated."""
        return self.update.lower(self.abstract, *self.given)


def make_machine(plan: RunPlan, mesh: Mesh | None = None) -> Machine:
    """Mesh, model and optimizer of `plan`, and the update, not compiled yet.

    Args:
      mesh: in place of the one that the plan has on the devices that are there.

    Raises:
      ConfigError: the mesh does not fit the devices or the batch; there is no such model or optimizer.
    """
    spec = plan.spec
    mesh = run_mesh(spec) if mesh is None else mesh
    model, tx = base.build(spec.model), optimizers.build(plan)
    abstract, given = abstract_state(model, tx, mesh), abstract_inputs(plan, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (abstract, *given))
    update = jit_train_step(model, tx, mesh, shardings, spec.batch.accumulate, spec.objective.z_loss)
    return Machine(plan, mesh, model, tx, abstract, given, update, phase_switches(plan, tx, shardings[0]))


def abstract_state(model: base.Model, tx: Any, mesh: Mesh) -> State:
    """Shapes, dtypes and shardings of the state on `mesh`; allocates nothing."""
    params = model.abstract()
    param_shardings = parameter_shardings(mesh, model.logical_axes(), params)
    opt_shardings = optimizer_shardings(tx, params, param_shardings, mesh)
    abstract = State(params, jax.eval_shape(tx.init, params))
    with_sharding = lambda leaf, s: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=s)  # noqa: E731
    return jax.tree.map(with_sharding, abstract, State(param_shardings, opt_shardings))


def phase_switches(plan: RunPlan, tx: Any, shardings: State) -> dict[int, Switch]:
    """What the optimizer policy of each phase does to the state, by the step at which the phase begins."""

    def switch(policy: str) -> Switch:
        change = lambda s: s._replace(opt_state=apply_policy(policy, tx, s.params, s.opt_state))  # noqa: E731
        return jax.jit(change, donate_argnums=0, out_shardings=shardings)

    # The first phase finds no optimizer state of before, unless the run brings one along.
    return {
        p.first_step: switch(p.spec.optimizer.policy)
        for p in plan.phases
        if p.index > 0 or plan.spec.init.brings_optimizer
    }


def abstract_inputs(plan: RunPlan, mesh: Mesh) -> tuple[Any, ...]:
    """Shapes, dtypes and shardings of what an update of `plan` is given: batch, learning rate, multipliers, `extra`."""
    replicated = NamedSharding(mesh, PartitionSpec())

    def small(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=replicated)

    extra = {name: small() for name in plan.hyper(0)} if plan.varies else {}
    if plan.spec.guard.judges:
        extra |= {"loss_limit": small(), "norm_limit": small()}
    return abstract_batch(plan, mesh), small(), small(most_columns(plan)), extra


def abstract_batch(plan: RunPlan, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a batch of `plan`, and of what several processes ask each other for with it."""
    rows, length = plan.spec.batch.sequences, plan.spec.batch.length
    dtypes = {"tokens_BxL": jnp.int32, "targets_BxL": jnp.int32, "weights_BxL": jnp.float32, "source_B": jnp.int32}
    if plan.spec.batch.mask_documents:
        dtypes["segments_BxL"] = jnp.int32
    shape = lambda name: (rows, length) if name.endswith("_BxL") else (rows,)  # noqa: E731
    batch = {n: jax.ShapeDtypeStruct(shape(n), d, sharding=batch_sharding(mesh, n)) for n, d in dtypes.items()}
    return batch | asked(mesh)


def most_columns(plan: RunPlan) -> int:
    """The run's largest number of columns, which the multipliers of every phase are padded to."""
    return max(len(p.columns) for p in plan.phases)


def multipliers(plan: RunPlan, step: int) -> np.ndarray:
    """Loss multiplier of each column at `step`, padded with ones."""
    phase = plan.phase_at(step)
    out_K = np.ones(most_columns(plan), np.float32)
    out_K[: len(phase.columns)] = phase.multipliers(step - phase.first_step)
    return out_K

"""What a plan becomes on the devices that are there: model, optimizer, shardings, and the compiled update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from cpt.models import base
from cpt.optimizers import building as optimizers
from cpt.optimizers.policy import apply_policy
from cpt.plan import RunPlan
from cpt.training.sharding import optimizer_shardings, parameter_shardings, replicate, run_mesh
from cpt.training.state import State
from cpt.training.step import jit_train_step

Switch = Callable[[State], State]


@dataclass(frozen=True)
class Machine:
    """A plan on its devices; nothing in it changes while the run goes on.

    Attributes:
      abstract: shapes, dtypes and shardings of the state.
      update: `(state, batch, lr, multipliers_K, extra) -> (state, sums)`; the state is donated.
      switch: what the optimizer policy of each phase does to the state, by the step at which the phase begins.
    """

    plan: RunPlan
    mesh: Mesh
    model: base.Model
    tx: Any
    abstract: State
    update: Callable[..., Any]
    switch: dict[int, Switch]

    def inputs(self, step: int, limits: tuple[float, float] | None) -> tuple[Any, ...]:
        """Learning rate, loss multipliers, and what else update `step` is given, on all devices.

        Args:
          limits: of the guard, None where it judges nothing.
        """
        extra = {k: np.float32(v) for k, v in self.plan.hyper(step).items()} if self.plan.varies else {}
        if limits is not None:
            extra |= {"loss_limit": np.float32(limits[0]), "norm_limit": np.float32(limits[1])}
        columns = max(len(p.columns) for p in self.plan.phases)
        given = np.float32(self.plan.lr(step)), multipliers(self.plan, step, columns), *([extra] if extra else [])
        return replicate(self.mesh, given)


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
    abstract = abstract_state(model, tx, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, abstract)
    update = jit_train_step(model, tx, mesh, shardings, spec.batch.accumulate, spec.objective.z_loss)
    return Machine(plan, mesh, model, tx, abstract, update, phase_switches(plan, tx, shardings))


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


def multipliers(plan: RunPlan, step: int, columns: int) -> np.ndarray:
    """Loss multiplier of each column at `step`, padded with ones to the run's largest number of columns."""
    phase = plan.phase_at(step)
    out_K = np.ones(columns, np.float32)
    out_K[: len(phase.columns)] = phase.multipliers(step - phase.first_step)
    return out_K

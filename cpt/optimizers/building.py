"""The optimizer of a plan."""

from __future__ import annotations

import inspect

import optax

from cpt.errors import ConfigError
from cpt.plan import RunPlan
from cpt.registry import find


def build(plan: RunPlan) -> optax.GradientTransformation:
    """The optimizer that the plan names, without a learning rate.

    Where its `update` takes keywords beyond optax's own, it is given `grad_norm`, the norm of all gradients.

    Raises:
      ConfigError: there is none of that name, or it cannot follow a beta2 or weight decay that changes.
    """
    kind, spec = plan.spec.optimizer.kind, plan.spec.optimizer
    method = find("cpt.optimizers", kind, "optimizer.kind")
    if not plan.varies:
        return method(spec)
    if "varies" not in inspect.signature(method).parameters:
        raise ConfigError(f"optimizer.kind: '{kind}' has no b2 and weight_decay that a phase could change")
    return method(spec, varies=True)

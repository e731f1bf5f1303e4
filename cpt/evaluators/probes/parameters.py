"""How far the parameters have moved since the phase began, all of them and by layer group."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from cpt.errors import ConfigError, RunError
from cpt.evaluators.probes._base import Probe, ProbeContext
from cpt.evaluators.probes._rows import count
from cpt.models.base import Params

NAMES = ("distance", "relative", "relative_bottom", "relative_top", "relative_embed", "relative_head")


def parameters(context: ProbeContext) -> Probe:
    """L2 distance from a reference w_0, and relative updates `|w_t - w_0| / |w_0|`.

    The distance from the start is what separates runs that keep their in-context learning from those that lose it long
    before a loss shows it (2506.00288); bottom layers that move more than top layers mark the stability gap's first
    steps (Guo et al. 2024, arXiv 2406.14833: their ratio is above 1.35 there and later falls to 1).

    Options:
      of: step of the reference; by default the first of the phase that `step` is in. A phase's last step is the first
        one of the next, and there the distance is 0; give `of` to measure across phases.
      layers: k of "bottom k" and "top k"; by default a quarter of them, at least 1.
      keep: hold the last reference on the devices, where it takes as much memory as the parameters, in place of
        reading it from its checkpoint at each call.

    Values: `distance`; `relative` of all parameters together; `relative_bottom` and `relative_top`, means over the
    first and last k layers of each layer's own; `relative_embed`, `relative_head`. All are 0 at the reference itself,
    and NaN before it, where |w_0| is 0, and where the run has no sound checkpoint of the reference.

    Raises:
      ConfigError: an option that does not fit, or a step that a run of this plan keeps no checkpoint of.
    """
    options = context.read(of=None, layers=None, keep=False)
    where, plan, params_at = f"{context.where}.options", context.plan, context.params_at
    n = context.model.spec.layers
    k = max(1, n // 4) if options["layers"] is None else count(options["layers"], f"{where}.layers")
    if k > n:
        raise ConfigError(f"{where}.layers: {k} is more than the {n} layers of the model")
    if not isinstance(options["keep"], bool):
        raise ConfigError(f"{where}.keep: {options['keep']!r} must be True or False")
    if params_at is None or plan is None:
        raise ConfigError(f"{context.where}: 'parameters' compares steps of a run, and there is none here")
    if options["of"] is not None:
        _check_reference(count(options["of"], f"{where}.of", 0), plan, f"{where}.of")
    moved = jax.jit(lambda now, before: distances(now, before, k))
    kept: dict[int, Params] = {}

    def probe(params: Params, step: int) -> dict[str, Any]:
        reference = plan.phase_at(step).first_step if options["of"] is None else options["of"]
        if step <= reference:
            return dict.fromkeys(NAMES, 0.0 if step == reference else math.nan)
        try:
            before = kept.get(reference) or params_at(reference)
        except RunError:  # a run need not hold what it, or the trunk that it branched from, began with
            return dict.fromkeys(NAMES, math.nan)
        if options["keep"]:
            kept.clear()
            kept[reference] = before
        return moved(params, before)

    return probe


def distances(now: Params, before: Params, k: int) -> dict[str, jax.Array]:
    """The values of the probe for two trees of parameters; `k` layers at each end."""
    of = {part: _squares(now[part], before[part]) for part in now if part != "layers"}
    head = of.get("head", of["embed"])  # a tied head is the embedding
    layers = [_squares(now["layers"][i], before["layers"][i]) for i in sorted(now["layers"], key=int)]
    moved, size = (sum(pair[i] for pair in (*of.values(), *layers)) for i in (0, 1))
    relative = [jnp.sqrt(m / s) for m, s in layers]
    return {
        "distance": jnp.sqrt(moved),
        "relative": jnp.sqrt(moved / size),
        "relative_bottom": sum(relative[:k]) / k,
        "relative_top": sum(relative[-k:]) / k,
        "relative_embed": jnp.sqrt(of["embed"][0] / of["embed"][1]),
        "relative_head": jnp.sqrt(head[0] / head[1]),
    }


def _squares(now: Any, before: Any) -> tuple[jax.Array, jax.Array]:
    """`|now - before|^2` and `|before|^2` of two trees, float32."""
    pairs = list(zip(jax.tree.leaves(now), jax.tree.leaves(before), strict=True))
    return sum(jnp.square(a - b).sum() for a, b in pairs), sum(jnp.square(b).sum() for _, b in pairs)


def _check_reference(step: int, plan: Any, where: str) -> None:
    if step and (step > plan.total_steps or not {"anchor", "grid"} & set(plan.checkpoints_at(step))):
        ends = ", ".join(str(p.end) for p in plan.phases)
        raise ConfigError(
            f"{where}: the run keeps no checkpoint of step {step}; take an end of a phase ({ends}) or a step of "
            "checkpoints.grid"
        )

"""The power scheduler: a learning rate that depends on batch and tokens seen, not on how long training will last."""

from __future__ import annotations

from cpt.errors import ConfigError
from cpt.schedules.segments import Decay, Power, Ramp, Segment
from cpt.schedules.spec import LRSpec, Span
from cpt.units import Duration


def power(spec: LRSpec, span: Span, start: float, where: str) -> list[Segment]:
    """Power scheduler (Shen et al. 2024, arXiv 2408.13359).

        lr(n) = min(peak, beta * a * n**b)      n = tokens of this phase, beta = sequences in a batch

    after a linear warm-up to the value at its end, with an exponential fall to `floor` over the last `decay`. The
    paper's a = 4, b = -0.51, peak 0.02 and warm-up of 1B tokens assume muP and sequences of 4096 tokens: with rows of
    another length beta is counted in 4096 tokens each. It decays to 0; an exponential does not get there, so the floor
    here is 0.1 of the rate that the fall begins at, unless `floor` is given.

    Uses: peak (cap), floor, warmup, decay (0.1 of the phase), options.a (4.0), options.b (-0.51).

    Raises:
      ConfigError: a not above 0, b not below 0, floor 0 or above where the fall begins, parts that do not fit.
    """
    options = spec.given(where, a=4.0, b=-0.51)
    if not options["a"] > 0:
        raise ConfigError(f"{where}.options.a: must be above 0, got {options['a']:g}")
    if not options["b"] < 0:
        raise ConfigError(f"{where}.options.b: must be below 0, got {options['b']:g}")
    cap = 0.02 if spec.peak is None else spec.levels(span, where)[0]
    warmup = span.duration(spec.warmup, f"{where}.warmup")
    decay = span.duration(spec.decay or Duration(fraction=0.1), f"{where}.decay")
    steps = span.left({"warmup": warmup, "decay": decay}, where)
    scale = span.tokens_per_step / 4096 * options["a"]
    fall = Power(steps, scale, options["b"], cap, warmup * span.tokens_per_step, span.tokens_per_step, jump=warmup == 0)
    begin = fall.at(0, 0.0)
    ramp = Ramp(begin, warmup, start=0.0 if spec.warmup_from == "zero" else None, jump=spec.warmup_from == "zero")
    level = fall.end(begin) if steps else begin
    floor = 0.1 * level if spec.floor is None else spec.floor
    if decay and not 0 < floor <= level:
        raise ConfigError(f"{where}.floor: must lie above 0 and up to {level:g}, where the fall begins; got {floor:g}")
    return [ramp, fall, Decay(floor, decay, "exp")] if decay else [ramp, fall]

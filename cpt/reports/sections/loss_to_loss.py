"""Old data's loss against new data's over the last phase: what each nat of learning cost (2411.12925, test to test)."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from cpt.errors import ConfigError
from cpt.evaluators import formatting as fmt
from cpt.evaluators.loss_to_loss import Fit, Pairs, fit, pairs_of, predict
from cpt.evaluators.rows import RunFiles
from cpt.evaluators.summary import only_at_edges
from cpt.reports.figures import label, layout, line, names_of, rounded, style, thinned
from cpt.reports.section import Figure, Section

POINTS = 200  # of a path
LEAST, EXPLAINED = 6, 0.95
"""A law is drawn where it was fitted to so many points and explains this share of their variance."""


def loss_to_loss(run: RunFiles) -> Section | None:
    """A path per old set, from the switch to the end, over the loss of the set learned last."""
    if not run.phases:
        return None
    last, first = len(run.phases) - 1, run.phases[-1]["first_step"]
    paths = [n for n in run.curves if not only_at_edges(run, n)]
    new = next((n for n in paths if run.learned_in(n) == last), None)
    old = [n for n in paths if n != new and run.is_upstream(n)]
    paths = {n: pairs for n in old if new and len((pairs := pairs_of(run, new, n, since=first)).x_N) > 1}
    if not paths:
        return None
    figure, styles, words, laws = go.Figure(), style(names_of(run)), [], []
    for name, pairs in paths.items():
        _path(figure, name, pairs, styles[name])
        words.append(f"{name} went from {fmt.nats(pairs.y_N[0])} to {fmt.nats(pairs.y_N[-1])}")
        if law := _law(pairs):
            _curve(figure, name, law, styles[name]["color"])
            laws.append(_sentence(name, new, law, len(paths) > 1))
    layout(figure, 420, showlegend=True)
    figure.update_layout(hovermode="closest")
    figure.update_xaxes(title_text=f"loss of {label(new)}, nats per token", autorange="reversed")
    figure.update_yaxes(title_text="loss of old data, nats per token")
    ends = next(iter(paths.values())).x_N[[0, -1]]
    alt = f"While the loss of {new} went from {fmt.nats(ends[0])} to {fmt.nats(ends[1])}, {', '.join(words)}."
    caption = (
        f"Every dot is an evaluation of the last phase, the open one the switch; learning {new} goes to the right, "
        f"forgetting goes up. {' '.join(laws)}"
    )
    return Section("Loss against loss", "", (Figure(figure, caption.strip(), alt),))


def _path(figure: go.Figure, name: str, pairs: Pairs, look: dict) -> None:
    points = thinned([*zip(pairs.x_N, pairs.y_N, pairs.labels_N, strict=True)], POINTS)
    x, y, steps = zip(*points, strict=True)
    # The open marker says where the path begins, at no cost of another trace.
    marker = {"size": [9, *[5] * (len(x) - 1)], "symbol": ["circle-open", *["circle"] * (len(x) - 1)]}
    hover = f"step %{{text}}<br>{label(name)} %{{y:.3f}}<br>%{{x:.3f}} nats/token<extra></extra>"
    trace = line(
        x, y, name, {**look, "width": 1.5}, mode="lines+markers", marker=marker, text=[f"{s:,}" for s in steps]
    )
    figure.add_trace(trace.update(hovertemplate=hover))


def _law(pairs: Pairs) -> Fit | None:
    """The law of the part after the peak: before it, in the stability gap, the two losses move against each other."""
    after = int(np.argmax(pairs.y_N))
    x_N, y_N = pairs.x_N[after:], pairs.y_N[after:]
    if len(x_N) < LEAST:
        return None
    try:
        law = fit(x_N, y_N)
    except ConfigError:  # all losses the same, say: nothing to draw
        return None
    return law if law.explained >= EXPLAINED else None


def _curve(figure: go.Figure, name: str, law: Fit, colour: str) -> None:
    at = np.linspace(*law.seen, 40)
    look = {"color": colour, "width": 1.5, "dash": "dot"}
    trace = line(at, rounded(predict(law, at).y_N), f"{name}, fitted", look, hoverinfo="skip")
    figure.add_trace(trace.update(showlegend=False))


def _sentence(name: str, new: str, law: Fit, named: bool) -> str:
    where = f" of {name}" if named else ""
    lo, hi = law.interval["kappa"]
    return (
        f"Dotted: after the peak, the loss{where} as a shifted power law of that of {new} with exponent "
        f"{law.kappa:.2f} ({lo:.2f} to {hi:.2f}; {law.points} points, residual {law.residual:.3f} nats per token)"
        + ("." if law.identified else "; the irreducible losses are not pinned down, so it is no forecast.")
    )

"""The losses of the domains of every set, and the means over them."""

from __future__ import annotations

from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import RunFiles
from cpt.reports.section import Html, Section, table


def domains(run: RunFiles) -> Section | None:
    """A table per set of several domains; a set that changed little as a whole may have changed much in one of them."""
    blocks = [_table(name, s) for name, s in run.summary["sets"].items() if s.get("domains")]
    if not blocks:
        return None
    lead = (
        "A sequence counts for the domain of the document that it begins in. The micro mean counts tokens, the macro "
        "mean counts domains."
    )
    return Section("Domains", lead, tuple(blocks))


def _table(name: str, s: dict) -> Html:
    worst_first = sorted(s["domains"].items(), key=lambda item: -(item[1]["forgetting"] or 0.0))
    rows = [
        [
            d,
            v["sequences"],
            fmt.nats(v["initial"]),
            fmt.nats(v["final"]),
            fmt.change(v["forgetting"], v["forgetting_ci95"]),
        ]
        for d, v in worst_first
    ]
    sequences = sum(v["sequences"] for v in s["domains"].values())
    rows.append(["micro mean", sequences, fmt.nats(s["initial"]), fmt.nats(s["final"]), fmt.signed(s["forgetting"])])
    macro, ends = s["macro"], [s["macro"]["initial"], s["macro"]["final"]]
    change = None if None in ends else macro["final"] - macro["initial"]
    rows.append(["macro mean", sequences, *map(fmt.nats, ends), fmt.signed(change)])
    heads = ["domain", "sequences", "before", "after", "change"]
    return table(heads, rows, f"{name}, nats per token, the most forgotten first", text_columns=1)

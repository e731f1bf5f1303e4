"""Every run in a row: where it ended, what changed since the switch, and the config fields that differ."""

from __future__ import annotations

from collections.abc import Iterable

from cpt.evaluators import formatting as fmt
from cpt.evaluators.rows import RunFiles
from cpt.evaluators.summary import gap_cells
from cpt.reports.comparison import Comparison
from cpt.reports.section import Html, Section, table

SAME_TEXT = 0.01  # sets of two tokenizers that differ by less end within the same last rows


def runs(comparison: Comparison) -> Section | None:
    """A table per set."""
    lead = "" if comparison.sort is None else f"Sorted by {comparison.sort}, smallest first."
    if not comparison.one_tokenizer:
        lead += " Runs have different tokenizers: losses are in bits per byte of text, which does not depend on them."
        lead += "".join(_other_text(name, comparison) for name in comparison.sets)
    return Section("Runs", lead.strip(), tuple(_table(name, comparison) for name in comparison.sets))


def _table(set_name: str, comparison: Comparison) -> Html:
    annealed = {name: _annealed(run, set_name) for name, run in comparison.runs.items()}
    with_annealed, one_tokenizer = any(annealed.values()), comparison.one_tokenizer
    fields = _fields(comparison)
    # The numbers first: recipes may differ in more fields than a page is wide.
    heads = ["run", *([] if one_tokenizer else ["before"]), "final", *(["annealed"] if with_annealed else []), "change"]
    heads += ["gap depth", "peak at", "recovered", "area", "bits per byte" if one_tokenizer else "bytes scored"]
    rows: list[Iterable[object]] = []
    for name, run in comparison.runs.items():
        if s := run.summary["sets"].get(set_name):
            losses = [*([] if one_tokenizer else [fmt.nats(s["initial"])]), fmt.nats(s["final"])]
            losses += [fmt.nats(annealed[name])] if with_annealed else []
            change, gap = fmt.change(s["forgetting"], s["forgetting_ci95"]), gap_cells(s["gap"], comparison.area_unit)
            text = fmt.nats(s["bits_per_byte"]["final"]) if one_tokenizer else _count(run.bytes_scored(set_name))
            rows.append([name, *losses, change, *gap, text, *(fields[f][name] for f in fields)])
    return table([*heads, *fields], rows, f"{set_name}, {comparison.unit}; change since the switch", text_columns=1)


def _fields(comparison: Comparison) -> dict[str, dict[str, str]]:
    """Those that differ, without the phases that only some of the runs have: `order` names them."""
    phases = [{p["name"] for p in run.phases} for run in comparison.runs.values()]
    lone = set.union(*phases) - set.intersection(*phases) if phases else set()
    return {f: v for f, v in comparison.fields.items() if not any(f.startswith(f"phases.{name}.") for name in lone)}


def _other_text(set_name: str, comparison: Comparison) -> str:
    """A sentence where the runs score more and less of a set's text."""
    found = {name: run.bytes_scored(set_name) for name, run in comparison.runs.items() if set_name in run.curves}
    known = [n for n in found.values() if n]
    if len(known) < len(found):
        return f" Nobody knows how many bytes {set_name} has in {', '.join(n for n, b in found.items() if not b)}."
    if not known or max(known) <= (1 + SAME_TEXT) * min(known):
        return ""
    return (
        f" Of {set_name} they score {min(known):,} to {max(known):,} bytes, so not the same text: give the set as many "
        "sequences as its split holds."
    )


def _count(n: int | None) -> str:
    return fmt.DASH if n is None else f"{n:,}"


def _annealed(run: RunFiles, set_name: str) -> float | None:
    """Loss at the end of the run's last annealed branch; None if it has none."""
    ends = [b["annealed"] for b in run.summary.get("branches") or [] if b["set"] == set_name]
    return ends[-1] if ends else None

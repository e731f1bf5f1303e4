"""`report.html`: one self-contained page that says what was learned, what was forgotten, and shows why.

The page is a list of sections, each one file of `cpt/reports/sections` with a function of the same name that takes the
run's files and returns a `Section`, or None when the run has nothing to show there. A file added to that folder appears
on the page before the records. plotly.js is inlined once; nothing is loaded from anywhere.
"""

from __future__ import annotations

import json
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

from plotly.offline import get_plotlyjs

from cpt.evaluators.rows import RunFiles, read_run, write_atomic
from cpt.evaluators.summary import write_summary
from cpt.registry import available, find
from cpt.reports.section import Figure, Html, Section

ROOM = "cpt.reports.sections"
FIRST = (
    "answer",
    "losses",
    "branches",
    "gap",
    "matrix",
    "loss_to_loss",
    "domains",
    "probes",
    "mix",
    "sources",
    "throughput",
    "plan",
)
LAST = ("records",)
ASSETS = Path(__file__).parent / "assets"


def write_report(
    run_dir: Path, out: Path | None = None, summary: dict[str, Any] | None = None, again_s: float | None = None
) -> Path:
    """Write the page of a run to `out` (default: `report.html` in the run directory).

    Args:
      summary: the content of `summary.json`, if it was derived just now; None derives and writes it first.
      again_s: seconds after which a browser loads the page of an unfinished run again.

    Raises:
      RunError: `run_dir` is no run directory, one of its files is damaged, or a file cannot be written.
    """
    run = read_run(Path(run_dir))
    run = replace(run, summary=summary or write_summary(run.path))
    again_s = None if run.summary["finished"] else again_s
    page = render(run.name, sections_of(run), state(run), again_s)
    return write_atomic(Path(out) if out else run.path / "report.html", page)


def sections_of(run: RunFiles) -> list[Section]:
    """The sections that have something to show, in the order of the page."""
    names = list(available(ROOM))
    added = [n for n in names if n not in FIRST + LAST]
    made = (find(ROOM, name, where="report")(run) for name in (*FIRST, *added, *LAST))
    return [section for section in made if section is not None]


def state(run: RunFiles) -> str:
    """One line under the headline: finished or how far."""
    total = run.plan.get("total_steps")
    done = f"{run.last_step:,} of {total:,} steps" if total else f"{run.last_step:,} steps"
    plan = f" · plan {run.plan['hash'][:8]} · seed {run.plan.get('seed')}" if run.plan.get("hash") else ""
    return f"{'finished' if run.summary.get('finished') else 'in progress'} · {done} · {run.last_tokens:,} tokens{plan}"


def render(
    title: str,
    sections: list[Section],
    state: str,
    again_s: float | None = None,
    unit: str = "nats per token",
) -> str:
    """The whole page as one HTML document; `again_s` lets a browser load it again after so many seconds."""
    ids = [f"s{i}" for i in range(len(sections))]
    nav = "".join(f'<a href="#{i}">{escape(s.title)}</a>' for i, s in zip(ids[1:], sections[1:], strict=True))
    body = "".join(_section(i, s) for i, s in zip(ids, sections, strict=True))
    # `</` cannot occur inside a script element of the page; plotly.js itself has none outside strings that allow this.
    plotly = get_plotlyjs().replace("</script", "<\\/script")
    again = "" if again_s is None else f'<meta http-equiv="refresh" content="{again_s:g}">'
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">{again}<title>{escape(title)} · cpt report</title>
<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">
<style>{_asset("page.css")}</style><script>{plotly}</script></head>
<body><header><p class="kicker">continual pre-training report</p>
<h1>{escape(title)}</h1><p class="state">{escape(state)}</p>
<nav aria-label="sections">{nav}</nav></header><main>{body}</main>
<footer>Losses are {unit}, higher is worse. ± is half of a 95 % bootstrap interval over evaluation documents;
it does not hold the spread between training seeds.</footer>
<script>{_asset("page.js")}</script></body></html>
"""


def _section(identity: str, section: Section) -> str:
    blocks = "".join(
        b.html if isinstance(b, Html) else _figure(f"{identity}f{n}", b) for n, b in enumerate(section.blocks)
    )
    lead = f'<p class="lead">{escape(section.lead)}</p>' if section.lead else ""
    heading = f'<h2 id="{identity}h">{escape(section.title)}</h2>'
    return f'<section id="{identity}" aria-labelledby="{identity}h">{heading}{lead}{blocks}</section>'


def _figure(identity: str, block: Figure) -> str:
    # Inside a script element only `<` can end it; JSON may write it as an escape.
    spec = json.dumps(json.loads(block.figure.to_json()), separators=(",", ":")).replace("<", "\\u003c")
    height = block.figure.layout.height
    return (
        f'<figure><div class="plot" id="{identity}" role="img" aria-label="{escape(block.alt)}" '
        f'style="height:{height}px"></div><script type="application/json" data-plot="{identity}">{spec}</script>'
        f"<figcaption>{escape(block.caption)}</figcaption></figure>"
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")

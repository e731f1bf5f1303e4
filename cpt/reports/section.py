"""What a section of the report is: a title, a sentence, and blocks of figures and HTML."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from html import escape

import plotly.graph_objects as go


@dataclass(frozen=True)
class Figure:
    """A plot with the words that stand under it and those that stand for it.

    Attributes:
      figure: the plotly figure; its layout holds no colours of paper and text, the page sets them for light and dark.
      caption: plain text under the plot.
      alt: plain text for those who cannot see it: what is plotted and what it shows.
    """

    figure: go.Figure
    caption: str
    alt: str


@dataclass(frozen=True)
class Html:
    """Ready-made HTML; whoever makes it escapes what comes from files (`table` and `cards` below do)."""

    html: str


@dataclass(frozen=True)
class Section:
    """One section of the page: `title` and `lead` are plain text and are escaped by the page."""

    title: str
    lead: str
    blocks: tuple[Figure | Html, ...]


def table(heads: Iterable[str], rows: Iterable[Iterable[object]], caption: str, text_columns: int = 1) -> Html:
    """An HTML table of plain values; the first `text_columns` columns are words, the others right-aligned numbers."""

    def cell(tag: str, i: int, value: object) -> str:
        scope = ' scope="col"' if tag == "th" else ""
        return f"<{tag}{scope}{'' if i < text_columns else ' class=num'}>{escape(str(value))}</{tag}>"

    def line(tag: str, values: Iterable[object]) -> str:
        return "<tr>" + "".join(cell(tag, i, v) for i, v in enumerate(values)) + "</tr>"

    body = "".join(line("td", r) for r in rows)
    return Html(
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}"><table>'
        f"<caption>{escape(caption)}</caption><thead>{line('th', heads)}</thead><tbody>{body}</tbody></table></div>"
    )


def cards(items: Iterable[tuple[str, str, str]]) -> Html:
    """Large numbers side by side: (label, value, explanation), all plain text."""
    return Html(
        '<div class="cards">'
        + "".join(
            f'<div class="card"><p class="label">{escape(label)}</p><p class="value">{escape(value)}</p>'
            f'<p class="note">{escape(note)}</p></div>'
            for label, value, note in items
        )
        + "</div>"
    )


def records(label: str, lines: list[str]) -> Html:
    """Many lines of plain text, folded, with a field that filters them."""
    body = "\n".join(f"<span>{escape(line)}</span>" for line in lines)
    return Html(
        f'<details><summary>{escape(label)} <small>{len(lines)} entries</small></summary><input type="search" '
        f'placeholder="filter" aria-label="filter {escape(label)}"><pre>{body}</pre></details>'
    )

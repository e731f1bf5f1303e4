"""How the numbers of a run are written for people: signs, units, half-widths, and a dash where there is no number."""

from __future__ import annotations

from cpt.units import human

DASH = "–"
MINUS = "−"


def nats(value: float | None, digits: int = 3) -> str:
    """`3.402`, or a dash."""
    return DASH if value is None else f"{value:.{digits}f}".replace("-", MINUS)


def signed(value: float | None, digits: int = 3) -> str:
    """`+0.159` or `−2.468`; what rounds to zero has no sign."""
    if value is None:
        return DASH
    shown = round(value, digits)
    return f"{shown:+.{digits}f}".replace("-", MINUS) if shown else f"{0:.{digits}f}"


def half_width(ci: list[float] | None) -> float | None:
    """Half of an interval's width: what follows the ±."""
    return None if not ci or None in ci else (ci[1] - ci[0]) / 2


def plus_minus(value: float | None, ci: list[float] | None, sign: bool = True) -> str:
    """`+0.159 ± 0.011`; just the value where there is no interval."""
    text, half = (signed if sign else nats)(value), half_width(ci)
    return text if value is None or half is None else f"{text} ± {half:.3f}"


def within_noise(ci: list[float] | None) -> bool:
    """Whether the interval contains 0."""
    return half_width(ci) is not None and ci[0] <= 0 <= ci[1]


def change(value: float | None, ci: list[float] | None) -> str:
    """`+0.159 ± 0.011`, and a word where the interval contains 0."""
    return plus_minus(value, ci) + (" (within noise)" if within_noise(ci) else "")


def tokens(value: float | None) -> str:
    """`23k`, or a dash."""
    return DASH if value is None else human(value)


def percent(share: float | None, digits: int = 1) -> str:
    """`5.0 %`."""
    return DASH if share is None else f"{100 * share:.{digits}f} %"


def value(number: float | None) -> str:
    """Any number in four digits, or a dash: `0.1234`, `12,345`."""
    if number is None:
        return DASH
    return (f"{number:,.0f}" if 1e4 <= abs(number) < 1e12 else f"{number:.4g}").replace("-", MINUS)

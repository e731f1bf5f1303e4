"""How the cost of a step grows with what a run is made of, beside how its arithmetic grows.

Each axis is measured at a few sizes, the others held; a line fitted to the logarithms gives the exponent. What has no
arithmetic of its own (hosts, checkpoints, run length) should not grow at all.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cpt.bench import growth_data, growth_model
from cpt.bench.timing import exponent

TOLERATED = 0.1  # of an exponent; small sizes carry a constant part and noise
Points = dict[int, float]


def axes(small: bool) -> dict[str, tuple[Callable[[int], float], list[int], Callable[[int], float]]]:
    """By name: seconds at a size, the sizes, and what the arithmetic grows with."""
    one = lambda size: 1.0  # noqa: E731

    def up_to(largest: int, smallest: int = 1) -> list[int]:
        sizes = [smallest]
        while sizes[-1] < largest:
            sizes.append(sizes[-1] * (4 if largest > 16 * smallest else 2))
        return sizes[:2] if small else sizes

    return {
        "layers": (growth_model.layers, up_to(8), growth_model.layer_flops),
        "width": (growth_model.width, up_to(512, 64), growth_model.width_flops),
        "length": (growth_model.length, up_to(512, 64), growth_model.length_flops),
        "sources: update": (growth_model.sources, up_to(64), one),
        # Each source is a file of its own, read in an order of its own.
        "sources: batch": (growth_data.sources, up_to(64), float),
        "hosts, one batch for all": (growth_data.hosts_of_one_batch, up_to(4096), one),
        "hosts, four rows each": (growth_data.hosts_of_four_rows, up_to(4096), one),
        "run length": (growth_data.run_length, [100, 1000] if small else [10**k for k in range(2, 8)], one),
        "checkpoints": (growth_data.checkpoints, up_to(256), one),
    }


def bench_growth(small: bool, out: Path | None, say: Callable[[str], None]) -> dict[str, Any]:
    """Seconds at each size of each axis, fitted exponents, and a figure.

    Args:
      small: two sizes of each axis only.
      out: folder for `growth.png`; None draws none.
    """
    result: dict[str, Any] = {}
    for name, (seconds, sizes, arithmetic) in axes(small).items():
        points = {size: seconds(size) for size in sizes}
        result[name] = told(points, {size: arithmetic(size) for size in sizes})
        say(f"{name}: " + ", ".join(f"{size:,}: {1e3 * s:.3g} ms" for size, s in points.items()))
    if out is not None:
        say(f"wrote {draw(result, out / 'growth.png')}")
    return {"axes": result, "faster_than_arithmetic": [n for n, r in result.items() if r["faster"]]}


def told(points: Points, arithmetic: Points) -> dict[str, Any]:
    """Points, exponents of time and arithmetic, and whether time grows faster.

    The exponent of time is that of the larger half of the sizes as well: a constant part hides growth at small ones.
    """
    sizes = list(points)
    upper = sizes[-max(3, (len(sizes) + 1) // 2) :]
    of = lambda values, at: exponent(at, [values[s] for s in at])  # noqa: E731
    time_all, time_upper = of(points, sizes), of(points, upper)
    count_all, count_upper = of(arithmetic, sizes), of(arithmetic, upper)
    return {
        "sizes": sizes,
        "seconds": [points[s] for s in sizes],
        "exponent": time_all,
        "exponent_upper": time_upper,
        "arithmetic": count_all,
        "arithmetic_upper": count_upper,
        "faster": time_upper > count_upper + TOLERATED,
    }


def draw(result: dict[str, Any], out: Path) -> Path:
    """A small plot per axis: measured points, and the arithmetic through the first of them."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import NullFormatter, NullLocator

    from cpt.reports.figures import PALETTE
    from cpt.units import human

    figure, plots = pyplot.subplots(3, 3, figsize=(10, 7.5), dpi=150)
    for axis, (name, said) in zip(plots.flat, result.items(), strict=False):
        sizes, milliseconds = said["sizes"], [1e3 * s for s in said["seconds"]]
        axis.loglog(sizes, milliseconds, "o-", color=PALETTE[0], lw=1.5, ms=4)
        expected = [milliseconds[-1] * (s / sizes[-1]) ** said["arithmetic_upper"] for s in sizes]
        axis.loglog(sizes, expected, "--", color="0.6", lw=1)
        axis.set_title(f"{name}: {said['exponent_upper']:.2f} (arithmetic {said['arithmetic_upper']:.2f})", fontsize=8)
        axis.set_ylim(min(*milliseconds, *expected) / 2, max(*milliseconds, *expected) * 2)
        axis.tick_params(labelsize=7)
        axis.set_xticks(sizes[:: max(1, len(sizes) // 4)], [human(s) for s in sizes[:: max(1, len(sizes) // 4)]])
        axis.xaxis.set_minor_locator(NullLocator())
        axis.yaxis.set_minor_formatter(NullFormatter())
        axis.yaxis.set_major_formatter(lambda y, _: f"{y:g}")
        axis.spines[["top", "right"]].set_visible(False)
    for axis in plots[:, 0]:
        axis.set_ylabel("ms", fontsize=8)
    figure.tight_layout()
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out)
    pyplot.close(figure)
    return out

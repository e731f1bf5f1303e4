"""The plan as the table that is printed at launch."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from cpt.models.spec import flops_per_token, parameter_count
from cpt.plan import Phase, RunPlan
from cpt.units import human


def plan_table(plan: RunPlan) -> Table:
    """Phases with tokens, steps, mix, learning rate, optimizer, evaluations; totals in the last row."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("phase", "tokens", "steps", "mix", "learning rate", "optimizer", "evaluations"):
        table.add_column(title, overflow="fold")
    for phase in plan.phases:
        table.add_row(
            phase.name,
            human(phase.tokens),
            steps_text(phase.steps),
            Listing(mix_text(phase)),
            phase.schedule.describe(),
            _policy_text(plan, phase),
            Listing(evaluations_text(phase)),
        )
    table.add_row("total", human(plan.total_tokens), steps_text(plan.total_steps))
    return table


class Listing:
    """A cell that breaks after commas, or else between a name and its number; `5 %` is never torn apart."""

    def __init__(self, text: str):
        self.text = text

    def __str__(self) -> str:
        return self.text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(max(map(len, self._parts(0))), len(self.text))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        lines = [""]
        for part in self._parts(options.max_width):
            together = f"{lines[-1]} {part}".lstrip()
            if lines[-1] and len(together) > options.max_width:
                lines.append(part)
            else:
                lines[-1] = together
        yield Text("\n".join(lines), overflow="fold")

    def _parts(self, width: int) -> list[str]:
        """What stays on one line where lines are `width` long."""
        parts = self.text.split(", ")
        with_commas = [*(f"{part}," for part in parts[:-1]), parts[-1]]
        return [piece for part in with_commas for piece in ([part] if len(part) <= width else part.split(" ", 1))]


def _policy_text(plan: RunPlan, phase: Phase) -> str:
    policy = phase.spec.optimizer
    text = policy.policy + (f" {policy.steps}" if policy.policy == "lr0_warm" else "")
    if phase.index == 0:
        return f"from run, {text}" if plan.spec.init.brings_optimizer else "fresh"
    return text


def cost_line(plan: RunPlan) -> str:
    """Parameters, batch, FLOPs (exact matmul count, causal) and checkpoints of the whole run."""
    spec = plan.spec
    flops = plan.total_tokens * flops_per_token(spec.model, spec.batch.length)
    kinds = [plan.checkpoints_at(s) for s in _checkpoint_steps(plan)]
    counts = {k: sum(k in at for at in kinds) for k in ("anchor", "grid", "rolling")}
    return (
        f"{spec.model.family} {human(parameter_count(spec.model))} parameters · batch {spec.batch.sequences} x "
        f"{spec.batch.length} = {spec.batch.sequences * spec.batch.length:,} tokens per step · "
        f"{flop_text(flops)} · "
        f"checkpoints: {counts['anchor']} anchors, {counts['grid']} grid, {counts['rolling']} rolling "
        f"(newest {spec.checkpoints.keep_rolling} kept)"
    )


def replay_lines(plan: RunPlan) -> list[str]:
    """`slimpajama: 285B new + 15B replayed tokens (5 %)` for each phase that replays."""
    lines = []
    for phase in plan.phases:
        replay = phase.spec.replay
        if replay.active:
            old = phase.tokens - phase.new_tokens
            of = " + ".join(dict.fromkeys(f"replay({c.of or c.source})" for c in phase.columns if c.role == "replay"))
            kind = "compute-equivalent" if replay.accounting == "fixed_total" else "on top of the new tokens"
            moves = "" if replay.schedule.kind == "constant" else f"{replay.schedule.kind}, "
            lines.append(
                f"{phase.name}: {human(phase.new_tokens)} new + {human(old)} replayed tokens "
                f"({100 * old / phase.tokens:.3g} % {of}, {moves}{kind}, {replay.range}, {replay.order} order)"
            )
    return lines


def branch_lines(plan: RunPlan) -> list[str]:
    """`annealed branches at steps 60, 100: 1-sqrt over 20, 20 steps`, where the plan has any."""
    spec, points = plan.spec.anneal, plan.branch_points
    if not points:
        return []
    tokens_per_step = plan.phases[0].tokens_per_step
    lengths = [spec.decay.resolve(at, tokens_per_step, "anneal.decay") for at in points]
    at, over = (", ".join(f"{n:,}" for n in numbers) for numbers in (points, lengths))
    return [f"annealed branches at steps {at}: {spec.shape} over {over} steps"]


def mix_text(phase: Phase) -> str:
    """`slimpajama 95 %, replay(pile) 5 %`; a changing mix shows its first and last shares."""
    first, last = phase.shares(0), phase.shares(phase.steps - 1)
    parts = []
    for column, a, b in zip(phase.columns, first, last, strict=True):
        share = f"{100 * a:.3g}" if a == b else f"{100 * a:.3g} > {100 * b:.3g}"
        parts.append(f"{column.name} {share} %")
    return ", ".join(parts)


def evaluations_text(phase: Phase) -> str:
    """`20 (0, 1, 2, 4..64, every 25)`: how many, and where the grid is dense."""
    dense = min(phase.spec.evaluate.dense, phase.steps)
    parts = ["0", f"1..{dense}"] if dense else ["0"]
    powers = [s for s in phase.eval_steps if dense < s <= phase.spec.evaluate.geometric and s & (s - 1) == 0]
    parts += [str(p) for p in powers] if len(powers) < 4 else [*map(str, powers[:2]), f"{powers[2]}..{powers[-1]}"]
    if 0 < phase.eval_every < phase.steps:
        parts.append(f"every {phase.eval_every:,}")
    return f"{len(phase.eval_steps)} ({', '.join(parts)}, end)"


def flop_text(flops: float) -> str:
    """`1.33 GFLOP`: tokens are counted in billions, operations in giga."""
    number = human(flops)
    digits = number.rstrip("kMBTPEZ")
    return f"{digits} {number[len(digits) :].replace('B', 'G')}FLOP"


def steps_text(steps: int) -> str:
    return f"{steps:,}"


def _checkpoint_steps(plan: RunPlan) -> list[int]:
    steps: set[int] = set(plan.branch_points)
    for phase in plan.phases:
        steps.add(phase.end)
        for every in (phase.grid, phase.rolling):
            if every:
                steps |= set(range(phase.first_step + every, phase.end, every))
    return sorted(steps)

"""The plan as the table that is printed at launch."""

from __future__ import annotations

from rich.table import Table

from cpt.models.spec import flops_per_token, parameter_count
from cpt.plan import Phase, RunPlan
from cpt.units import human


def plan_table(plan: RunPlan) -> Table:
    """Phases with tokens, steps, mix, learning rate, optimizer, evaluations; totals in the last row."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    for title in ("phase", "tokens", "steps", "mix", "learning rate", "optimizer", "evaluations"):
        table.add_column(title, overflow="fold")
    for phase in plan.phases:
        policy = phase.spec.optimizer
        table.add_row(
            phase.name,
            human(phase.tokens),
            steps_text(phase.steps),
            mix_text(phase),
            phase.schedule.describe(),
            "fresh"
            if phase.index == 0 and not plan.spec.init.brings_optimizer
            else policy.policy + (f" {policy.steps}" if policy.policy == "lr0_warm" else ""),
            evaluations_text(phase),
        )
    table.add_row("total", human(plan.total_tokens), steps_text(plan.total_steps))
    return table


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
            old = phase.tokens * replay.share
            kind = "compute-equivalent" if replay.accounting == "fixed_total" else "on top of the new tokens"
            lines.append(
                f"{phase.name}: {human(phase.tokens - old)} new + {human(old)} replayed tokens "
                f"({100 * replay.share:g} % replay({replay.of}), {kind}, {replay.range}, {replay.order} order)"
            )
    return lines


def mix_text(phase: Phase) -> str:
    """`slimpajama 95 %, replay(pile) 5 %`; a changing mix shows its first and last shares."""
    first, last = phase.shares(0), phase.shares(phase.steps - 1)
    parts = []
    for column, a, b in zip(phase.columns, first, last, strict=True):
        share = f"{100 * a:.3g}" if a == b else f"{100 * a:.3g} > {100 * b:.3g}"
        parts.append(f"{column.name} {share} %")
    return ", ".join(parts)


def evaluations_text(phase: Phase) -> str:
    """`62 (0..8, 16, 32, 64, every 25)`: how many, and where the grid is dense."""
    grid, parts = phase.spec.evaluate, ["0"]
    if grid.dense:
        parts.append(f"1..{grid.dense}")
    powers = [2**i for i in range(grid.geometric.bit_length()) if grid.dense < 2**i <= grid.geometric]
    parts += [str(p) for p in powers] if len(powers) < 4 else [str(powers[0]), str(powers[1]), f"..{powers[-1]}"]
    regular = [s for s in phase.eval_steps if s > max(grid.dense, grid.geometric)]
    if len(regular) > 1:
        parts.append(f"every {regular[1] - regular[0]}")
    return f"{len(phase.eval_steps)} ({', '.join(parts)})"


def flop_text(flops: float) -> str:
    """`1.33 GFLOP`: tokens are counted in billions, operations in giga."""
    number = human(flops)
    digits = number.rstrip("kMBTPEZ")
    return f"{digits} {number[len(digits) :].replace('B', 'G')}FLOP"


def steps_text(steps: int) -> str:
    return f"{steps:,}"


def _checkpoint_steps(plan: RunPlan) -> list[int]:
    steps: set[int] = set()
    for phase in plan.phases:
        steps.add(phase.end)
        for every in (phase.grid, phase.rolling):
            if every:
                steps |= set(range(phase.first_step + every, phase.end, every))
    return sorted(steps)

"""The phase x set matrix and what it says in one number: backward and forward transfer (Lopez-Paz & Ranzato 2017).

`R[i][j]` is the loss of set j after phase i; row 0 is the model before any training of this run (for continual
pre-training the *pre-trained* starting model, not a random one). The signs are those of the accuracy literature
although R holds losses: a negative BWT is forgetting, a positive FWT means that earlier phases helped a set before its
own phase began.
"""

from __future__ import annotations

from cpt.evaluators.rows import RunFiles

Matrix = list[list[float | None]]


def transfer_matrix(run: RunFiles) -> Matrix:
    """`R[i][j]`: row 0 before training, row i after phase i; columns as `run.set_names`; None where not evaluated."""
    columns = [column_of(run, name) for name in run.set_names]
    return [list(row) for row in zip(*columns, strict=True)] or [[] for _ in range(len(run.phases) + 1)]


def column_of(run: RunFiles, name: str) -> list[float | None]:
    """The losses of one set before training and after each phase; None where not evaluated."""
    ends = [0, *(p["first_step"] + p["steps"] for p in run.phases)]
    return [_loss_at(run, name, step) for step in ends]


def bwt(matrix: Matrix, learned_row: list[int | None]) -> float | None:
    """Backward transfer: mean over old sets of `R[i, j] - R[T, j]`, nats/token; negative = forgetting.

    Args:
      matrix: T + 1 rows.
      learned_row: per set the row right after the phase that learned it (1..T), or None for a set never learned. Old
        sets are those with a row before T.

    Returns:
      None when there is no old set, or one of them was not evaluated at both places.
    """
    end = len(matrix) - 1
    return _mean([_minus(matrix[i][j], matrix[end][j]) for j, i in enumerate(learned_row) if i is not None and i < end])


def fwt(matrix: Matrix, learned_row: list[int | None]) -> float | None:
    """Forward transfer: mean over sets learned in phase i >= 2 of `R[0, j] - R[i-1, j]`, nats/token; positive = helped.

    None when no set is learned after the first phase, or one was not evaluated at both places.
    """
    return _mean(
        [_minus(matrix[0][j], matrix[i - 1][j]) for j, i in enumerate(learned_row) if i is not None and i >= 2]
    )


def _loss_at(run: RunFiles, name: str, step: int) -> float | None:
    curve = run.curves.get(name)
    hits = [] if curve is None else curve.loss[curve.steps == step]
    return float(hits[0]) if len(hits) else None


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mean(values: list[float | None]) -> float | None:
    # A mean over fewer sets than it claims would compare unlike things between runs.
    return None if not values or any(v is None for v in values) else sum(values) / len(values)

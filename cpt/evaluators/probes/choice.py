"""Multiple choice and cloze questions from a file: which answer the model finds most likely, and how likely."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cpt.errors import ConfigError
from cpt.evaluators.probes._base import Probe, ProbeContext
from cpt.evaluators.probes._questions import Continuation, Question, continuations, read_questions
from cpt.evaluators.probes._rows import in_passes, rows_per_pass
from cpt.models.base import Params
from cpt.objectives.cross_entropy import automatic_rows, cross_entropy

MULTIPLE = 32  # tokens that the common length of the rows is rounded up to
PER_DOMAIN = ("accuracy", "gold_nats")


def choice(context: ProbeContext) -> Probe:
    """Answers scored by their summed log-probability after the question, as `acc` of lm-evaluation-harness.

    The file holds JSON lines: `{"question": "...", "choices": ["...", "..."], "answer": 0}`, `answer` being the index
    of the right choice, with `context` in place of `question` where that reads better (a cloze), and a `domain` where
    there are several. How text becomes tokens: `continuations`.

    Options:
      file: its path.
      delimiter: between question and choice where neither brings a blank; one blank.

    Values, means over questions: `accuracy`; `accuracy_norm`, by nats per byte of the answer (`acc_norm`);
    `gold_nats` of the right answer and its `gold_probability` among the choices, which are continuous and so far less
    noisy between checkpoints than an accuracy (Madaan et al. 2024, arXiv 2406.10229). Of equally likely answers the
    first counts. With several domains also `accuracy/<domain>` and `gold_nats/<domain>`.

    Raises:
      ConfigError: no tokenizer, no such file, or a line that is no question; names file and line.
    """
    options = context.read(file=None, delimiter=" ")
    where, model = f"{context.where}.options", context.model
    if not isinstance(options["delimiter"], str):
        raise ConfigError(f"{where}.delimiter: {options['delimiter']!r} is not a text")
    questions = read_questions(options["file"], f"{where}.file")
    if context.tokenizer is None:
        raise ConfigError(f"{context.where}: 'choice' turns text into tokens, and the run names no tokenizer")
    scored = continuations(questions, context.tokenizer, model.spec.context, options["delimiter"], f"{where}.file")
    answers = list(scored)
    rows = _rows(answers, model.spec.context)
    table_QxC = _table([len(q.choices) for q in questions])
    bytes_QxC = np.array([a.n_bytes for a in answers])[table_QxC]
    gold_Q = np.array([q.answer for q in questions])
    groups = _groups(questions)

    @jax.jit
    def measured(params: Params, placed: dict[str, jax.Array]) -> dict[str, jax.Array]:
        def one_pass(rows: dict[str, jax.Array]) -> jax.Array:
            hidden_RxLxD = model.apply(params, rows["tokens"])
            chunk = automatic_rows(rows["tokens"].size, model.spec.vocab_size)
            nll_RxL = cross_entropy(hidden_RxLxD, model.head(params), rows["targets"], chunk)
            return (nll_RxL * rows["weights"]).sum(axis=1)

        nats_QxC = jax.lax.map(one_pass, placed).reshape(-1)[table_QxC]
        of_each = scores(nats_QxC, bytes_QxC, table_QxC >= 0, gold_Q)
        return {name: of_each[name.partition("/")[0]][mine].mean() for name, mine in groups.items()}

    return lambda params, step: measured(params, in_passes(params, rows_per_pass(context), rows))


def scores(nats_QxC: jax.Array, bytes_QxC: np.ndarray, there_QxC: np.ndarray, gold_Q: np.ndarray) -> dict[str, Any]:
    """The values of each question, `[Q]`; NaN for all of a question one of whose answers is NaN.

    Args:
      nats_QxC: minus the log-probability of each answer.
      bytes_QxC: of each answer.
      there_QxC: False where a question has fewer answers than C.
      gold_Q: index of the right one.
    """
    nats_QxC = jnp.where(there_QxC, nats_QxC, jnp.inf)
    undefined_Q = jnp.isnan(nats_QxC).any(axis=1)
    gold_nats_Q = jnp.take_along_axis(nats_QxC, jnp.asarray(gold_Q)[:, None], axis=1)[:, 0]
    values = {
        "accuracy": nats_QxC.argmin(axis=1) == gold_Q,
        "accuracy_norm": (nats_QxC / np.maximum(bytes_QxC, 1)).argmin(axis=1) == gold_Q,
        "gold_nats": gold_nats_Q,
        "gold_probability": jnp.exp(-gold_nats_Q - jax.nn.logsumexp(-nats_QxC, axis=1)),
    }
    return {name: jnp.where(undefined_Q, jnp.nan, x.astype(jnp.float32)) for name, x in values.items()}


def _rows(answers: Sequence[Continuation], context: int) -> dict[str, np.ndarray]:
    """Inputs, targets and weights `[R, L]`, padded at the right, where causal attention does not look."""
    longest = max(len(a.ids) for a in answers) - 1
    length = min(-(-longest // MULTIPLE) * MULTIPLE, context)
    ids_RxM = np.stack([np.pad(a.ids, (0, length + 1 - len(a.ids))) for a in answers])
    weights_RxL = np.zeros((len(answers), length), np.float32)
    for row_L, a in zip(weights_RxL, answers, strict=True):
        row_L[len(a.ids) - 1 - a.scored : len(a.ids) - 1] = 1.0
    return {"tokens": ids_RxM[:, :-1], "targets": ids_RxM[:, 1:], "weights": weights_RxL}


def _table(choices_Q: Sequence[int]) -> np.ndarray:
    """Row of each choice of each question, `[Q, C]`; -1 where there is none."""
    choice_C = np.arange(max(choices_Q))
    first_Q = np.cumsum([0, *choices_Q[:-1]])
    return np.where(choice_C < np.array(choices_Q)[:, None], first_Q[:, None] + choice_C, -1)


def _groups(questions: Sequence[Question]) -> dict[str, np.ndarray]:
    """Numbers of the questions that each value is a mean over."""
    everything = np.arange(len(questions))
    out = dict.fromkeys(("accuracy", "accuracy_norm", "gold_nats", "gold_probability"), everything)
    domains = np.array([q.domain or "" for q in questions])
    if len(set(domains)) > 1:
        for domain in sorted({*domains} - {""}):
            out |= {f"{name}/{domain}": everything[domains == domain] for name in PER_DOMAIN}
    return out

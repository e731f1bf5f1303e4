"""Questions with several answers, read from JSON lines and cut into tokens."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.tokenizers._base import Tokenizer
from cpt.errors import ConfigError

TEXT = ("question", "context")


@dataclass(frozen=True)
class Question:
    """A question of a file.

    Attributes:
      context: what the model is given; may be empty.
      choices: the answers, two or more.
      answer: index of the right one.
      domain: what it belongs to, None where the file does not say.
      where: `file:line`.
    """

    context: str
    choices: tuple[str, ...]
    answer: int
    domain: str | None
    where: str


@dataclass(frozen=True)
class Continuation:
    """An answer after its question.

    Attributes:
      ids: int32 tokens of both, at most `context + 1`; the last `scored` of them are the answer's.
      scored: at least 1.
      n_bytes: UTF-8 bytes of the answer, without the blanks around it.
    """

    ids: np.ndarray
    scored: int
    n_bytes: int


def read_questions(path: Any, where: str) -> list[Question]:
    """The questions of a JSON lines file; blank lines are skipped.

    Raises:
      ConfigError: no such file, nothing in it, or a line that is no question; names file and line.
    """
    if not isinstance(path, str) or not path:
        raise ConfigError(f"{where}: name a JSON lines file of questions (got {path!r})")
    try:
        lines = Path(path).expanduser().read_bytes().split(b"\n")
    except OSError as e:
        raise ConfigError(f"{where}: {path} cannot be read ({e.strerror})") from e
    found = [_question(line, f"{path}:{i}", where) for i, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise ConfigError(f"{where}: {path} holds no question")
    return found


def _question(line: bytes, place: str, where: str) -> Question:
    def refuse(why: str) -> ConfigError:
        return ConfigError(f"{where}: {place}: {why}")

    try:
        record = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as e:
        raise refuse(f"not JSON ({e})") from e
    if not isinstance(record, dict):
        raise refuse("not an object with a question (or context), choices and an answer")
    texts = [record[name] for name in TEXT if name in record]
    choices, answer, domain = record.get("choices"), record.get("answer"), record.get("domain")
    if len(texts) != 1 or not isinstance(texts[0], str):
        raise refuse("needs the text of either `question` or `context`")
    if not isinstance(choices, list) or len(choices) < 2 or not all(isinstance(c, str) and c.strip() for c in choices):
        raise refuse("`choices` must be a list of two or more texts, none of them empty")
    if isinstance(answer, bool) or not isinstance(answer, int) or not 0 <= answer < len(choices):
        raise refuse(f"`answer` is {answer!r}; it must be the index of the right choice, 0 to {len(choices) - 1}")
    if domain is not None and not isinstance(domain, str):
        raise refuse(f"`domain` is {domain!r}, not a text")
    return Question(texts[0], tuple(choices), answer, domain, place)


def continuations(
    questions: list[Question], tokenizer: Tokenizer, context: int, delimiter: str, where: str
) -> Iterator[Continuation]:
    """Every choice of every question, in order.

    Question and choice are encoded together and cut where the tokens of the question alone end; blanks at its end
    belong to the choice, as subword tokenizers put a blank with the word after it. A question that gives no token is
    the end-of-document token. Of what is too long for the model, the end is kept.

    Args:
      context: tokens that the model reads at most.
      delimiter: between question and choice, where neither brings a blank of its own.

    Raises:
      ConfigError: a choice alone is longer than the context.
    """
    for q in questions:
        pairs = [_joined(q.context, choice, delimiter) for choice in q.choices]
        ids = tokenizer.encode_batch([text for pair in pairs for text in (pair[0], "".join(pair))])
        for choice, before, both in zip(q.choices, ids[::2], ids[1::2], strict=True):
            # Where a token spans the cut, encoding both may give no more tokens than the question: one is scored still.
            scored = max(1, len(both) - len(before))
            if scored > context:
                raise ConfigError(
                    f"{where}: {q.where}: a choice of {scored} tokens does not fit model.context={context}"
                )
            if scored == len(both):
                both = np.concatenate([[tokenizer.eod_id], both])
            yield Continuation(both[-(context + 1) :].astype(np.int32), scored, len(choice.strip().encode()))


def _joined(context: str, choice: str, delimiter: str) -> tuple[str, str]:
    """What is given and what is scored."""
    given = context.rstrip()
    blanks = context[len(given) :]
    if context and not blanks and choice == choice.lstrip():
        blanks = delimiter
    return given, blanks + choice

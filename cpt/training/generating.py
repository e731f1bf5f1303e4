"""Texts of a model, for a look at it: a prompt goes on, of a checkpoint or of a Hugging Face directory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from cpt.data.tokenizers._base import Tokenizer, load
from cpt.errors import ConfigError, RunError
from cpt.models import base, convert
from cpt.models.generation import Sampling, check_fits, generate
from cpt.models.spec import DecoderSpec
from cpt.training.checkpoint import DamagedCheckpoint, read_meta
from cpt.training.exchange import checkpoint_of_run, model_of_run, params_of, spread, tokenizer_of_run


@dataclass(frozen=True)
class Opened:
    """A model whose parameters are not read yet.

    Attributes:
      name: what to call it.
      spec: of the model.
      tokenizer: of the model.
      read: gives its parameters, on the devices.
    """

    name: str
    spec: DecoderSpec
    tokenizer: Tokenizer
    read: Callable[[], Any]


def open_run(workdir: Path, step: int | None = None, tokenizer: str | None = None) -> Opened:
    """A checkpoint of a run; None is its newest.

    Args:
      tokenizer: file or folder, where the run's is not found.

    Raises:
      ConfigError: it is another tokenizer than the run's, or that is not found.
      RunError: no run there, no such checkpoint, or a damaged one.
    """
    spec, saved = model_of_run(workdir), checkpoint_of_run(workdir, step)
    try:
        wanted = read_meta(saved).get("tokenizer")
    except DamagedCheckpoint as e:
        raise RunError(f"{saved.path}: {e}; choose another --step, or bring it back from a copy") from e
    with tempfile.TemporaryDirectory() as scratch:
        file = tokenizer_of_run(workdir, wanted, tokenizer, Path(scratch))
        if file is None:
            raise ConfigError("--tokenizer=none: a prompt is text; name the tokenizer that makes ids of it")
        found = load(file)
    return Opened(f"checkpoint {saved} of {workdir}", spec, found, lambda: params_of(saved, spec)[0])


def open_hugging_face(folder: Path, tokenizer: str | None = None) -> Opened:
    """The model in a Hugging Face directory.

    Args:
      tokenizer: file or folder, where the directory has none.

    Raises:
      ConfigError: no such folder, a model that is not here.
      DataError: no tokenizer there.
      RunError: a file is missing or damaged.
    """
    spec = convert.read_spec(folder)
    found = load(Path(tokenizer).expanduser() if tokenizer else folder)

    def read() -> Any:
        place = spread()
        return convert.read(folder, lambda keys, array: jax.device_put(array, place(array.shape)))[1]

    return Opened(str(folder), spec, found, read)


def continuations(opened: Opened, prompt: str, tokens: int, samples: int, sampling: Sampling) -> Iterator[list[str]]:
    """What follows `prompt`, in `samples` ways drawn at once; each of them ends with its document.

    An empty prompt is the beginning of a document.

    Args:
      tokens: at most, of each.

    Returns:
      After each token, the texts so far. The beginning of a character is left out until the rest of it is there.

    Raises:
      ConfigError: prompt and tokens do not fit in the context; a tokenizer with ids that the model does not have.
    """
    tokenizer, spec = opened.tokenizer, opened.spec
    ids = tokenizer.encode_batch([prompt])[0].tolist() or [tokenizer.eod_id]
    if (largest := max(ids)) >= spec.vocab_size:
        raise ConfigError(
            f"{opened.name}: its tokenizer gives the id {largest}, and the model has {spec.vocab_size:,}; they do not "
            "belong together"
        )
    check_fits(len(ids), tokens, spec.context)
    following = generate(base.build(spec), opened.read(), [ids] * samples, [tokens] * samples, sampling)
    return _texts(following, tokenizer, ids, samples)


def _texts(following: Iterator[Any], tokenizer: Tokenizer, ids: list[int], samples: int) -> Iterator[list[str]]:
    given = tokenizer.decode(ids)
    new: list[list[int]] = [[] for _ in range(samples)]
    texts, going = [""] * samples, set(range(samples))
    for next_R in following:
        for row in sorted(going):
            if next_R[row] == tokenizer.eod_id:
                going.remove(row)
                continue
            new[row].append(int(next_R[row]))
            # Decoded with the prompt: some tokenizers leave out the blank that a text begins with.
            texts[row] = tokenizer.decode([*ids, *new[row]])[len(given) :].rstrip("\ufffd")
        yield list(texts)
        if not going:
            return

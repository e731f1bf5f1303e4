"""Recipes that continue somebody's model: what is left open is chosen by budget and shift, and said with its reason.

The rules are those of the literature on re-warming and replay; where it has none the sentence says "ours". Everything
chosen is an ordinary field of the config, and an override on the command line wins.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cpt import config as c
from cpt.data.shift import divergence
from cpt.data.store import TokenStore
from cpt.errors import ConfigError, nearest
from cpt.models.convert import read_spec
from cpt.models.spec import DecoderSpec, parameter_count
from cpt.sections import to_dict
from cpt.units import compact, human

SHIFTS = ("weak", "strong")
SHARES = {"weak": 0.05, "strong": 0.25}
PEAK_FACTORS = {"weak": 0.5, "strong": 1.0}
# Bits of `divergence`, set by two cases and by no published pair: English prose and Python code of one standard library
# are 0.26 apart, two halves of either about 0.04.
STRONG_FROM = 0.2
UPDATES = 1000  # at least, where the budget allows
FEWEST_ROWS = 8
MOST_EPOCHS = 4
LEAST_FACTOR = 0.1  # of the rate, however small the batch
MICRO_BATCH = 1 << 16  # tokens
HALF_FROM, RECOMPUTE_FROM = 50_000_000, 1_000_000_000  # parameters


@dataclass(frozen=True)
class Lineage:
    """How the models of a family were trained, as far as continuing them depends on it.

    Attributes:
      family: of `model.family`.
      peaks: (parameters, peak learning rate): a model takes the rate of the first entry that is no smaller than it.
      batch_tokens: tokens of a batch that these rates were used with.
      length: longest row to train on, in tokens.
      source: where the rates are from.
    """

    family: str
    peaks: tuple[tuple[float, float], ...]
    batch_tokens: int
    length: int
    source: str

    def peak(self, parameters: int) -> float:
        """The peak learning rate that a model of this size was trained with."""
        return next(peak for size, peak in self.peaks if parameters <= size)


@dataclass(frozen=True)
class Given:
    """What a recipe is told, in the order of its argument; `shift` is measured where it is not given."""

    model: str
    new: str
    replay: str
    tokens: int
    shift: str | None = None

    @classmethod
    def read(cls, argument: str) -> Given:
        """`MODEL_DIR,NEW_STORE,REPLAY_STORE,TOKENS[,weak|strong]`. Raises ConfigError."""
        parts = [part.strip() for part in argument.split(",")]
        if len(parts) not in (4, 5) or not all(parts):
            raise ConfigError(
                f"--config=...:{argument}: write FILE.py:MODEL_DIR,NEW_STORE,REPLAY_STORE,TOKENS, and weak or strong "
                "after that where the shift shall not be measured"
            )
        shift = parts[4] if len(parts) == 5 else None
        if shift not in (None, *SHIFTS):
            raise ConfigError(f"--config=...:{argument}: '{shift}' is no shift{nearest(shift, SHIFTS)}  (weak, strong)")
        try:
            tokens = float(parts[3].replace("_", ""))
        except ValueError:
            tokens = math.nan
        if not (tokens >= 1 and math.isfinite(tokens)):
            raise ConfigError(f"--config=...:{argument}: '{parts[3]}' is no number of tokens; write 1e9")
        return cls(*parts[:3], int(tokens), shift)


def continued(given: Given, lineage: Lineage, example: DecoderSpec | None = None) -> Any:
    """The config of a run that starts from `given.model`, learns `given.new` and replays `given.replay`.

    Args:
      example: the model, where there are no files yet: a recipe without an argument shows its plan on it.

    Raises:
      ConfigError: a model of another family, an empty store, a budget beyond four passes over a store.
      DataError, RunError: what is named is not there, or damaged.
    """
    model = read_spec(given.model) if example is None else example
    if model.family != lineage.family:
        raise ConfigError(
            f"{given.model}: its family is {model.family}, this recipe is for {lineage.family}; take the other one of "
            "configs/continue_pythia.py and configs/continue_llama.py"
        )
    parameters, said = parameter_count(model), []
    stores = None if example else {name: TokenStore.open(getattr(given, name)) for name in ("new", "replay")}
    shift = given.shift or _shift(stores, said)
    share = SHARES[shift]
    said.append(f"replay: {100 * share:g} % of each batch, in place of new tokens; weak 5, strong 25 (2403.08763, 4.2)")
    length = min(model.context, lineage.length)
    sequences = _sequences(given.tokens, length, lineage, said)
    steps = given.tokens // (sequences * length)
    peak = _peak(parameters, sequences * length, shift, lineage, said)
    warmup = dict(fraction=0.01) if steps >= UPDATES else dict(steps=max(1, min(10, steps // 10)))
    said.append(
        "schedule: from 0 up over "
        + ("1 % of the updates" if "fraction" in warmup else f"{warmup['steps']} updates")
        + f", cosine to a tenth, {compact(0.1 * peak)}; a fresh AdamW (2403.08763, eq. 2.1)"
    )
    wanted = {"new": (1 - share) * given.tokens, "replay": share * given.tokens}
    passes = {name: _passes(stores and stores[name], wanted[name], length, name, said) for name in wanted}
    sets = {n: n for n in wanted if stores is None or _has_validation(stores[n], n, said)}
    return c.run(
        name=f"continue_{re.sub(r'[^A-Za-z0-9_.-]+', '_', Path(given.model).name)}",
        notice="\n".join([_headline(given, parameters, example), *(f"  {line}" for line in said)]),
        init=c.init(from_hf=given.model),
        model=_model(model, parameters),
        batch=c.batch(sequences=sequences, length=length, accumulate=_accumulate(sequences, length)),
        tokenizer=_tokenizer(given.model),
        sources=dict(
            new=c.source(store=given.new, epochs=passes["new"]), replay=_upstream(given.replay, stores, length)
        ),
        order=("continued",),
        phases=dict(
            continued=c.phase(
                tokens=given.tokens,
                mix={"new": 1.0},
                replay=c.replay(of="replay", share=share, max_repeats=passes["replay"]),
                lr=c.lr(kind="cosine", peak=peak, floor=0.1 * peak, warmup=c.duration(**warmup)),
                evaluate=c.grid(dense=20, geometric=max(64, steps // 100), every=c.duration(fraction=0.02)),
            )
        ),
        evaluation=c.evaluation(
            sets={
                name: c.evaluation_set(
                    source=name, sequences=128, tags=("upstream",) if name == "replay" else ("downstream",)
                )
                for name in sets
            }
        ),
        checkpoints=c.checkpoints(grid=c.duration(fraction=0.1), rolling=c.duration(fraction=0.02)),
    )


def _shift(stores: dict[str, TokenStore] | None, said: list[str]) -> str:
    if stores is None:
        said.append("shift: taken as strong, since nothing is measured in an example")
        return "strong"
    bits = divergence(stores["new"], stores["replay"])
    shift = "strong" if bits >= STRONG_FROM else "weak"
    said.append(
        f"shift: {shift}, token frequencies of the stores diverge by {bits:.2f} bits (strong from {STRONG_FROM:g} on: "
        "ours; say weak or strong as a fifth word to decide it yourself)"
    )
    return shift


def _sequences(tokens: int, length: int, lineage: Lineage, said: list[str]) -> int:
    """Rows of a batch: a power of two, as many as the models were trained with or leave `UPDATES` updates."""
    most = lineage.batch_tokens // length
    rows = max(FEWEST_ROWS, min(most, tokens // (UPDATES * length)))
    rows = 1 << (rows.bit_length() - 1)
    why = f"as in {lineage.source}" if rows * 2 > most else f"the largest that leaves {UPDATES:,} updates (ours)"
    if rows == FEWEST_ROWS:
        why = "the smallest batch (ours)"
    if tokens < rows * length:
        raise ConfigError(f"TOKENS: {tokens:,} are less than one batch of {rows} rows of {length} tokens; give more")
    batch = rows * length
    said.append(f"batch: {rows:,} rows of {length:,} = {human(batch)} tokens, {tokens // batch:,} updates; {why}")
    return rows


def _peak(parameters: int, batch: int, shift: str, lineage: Lineage, said: list[str]) -> float:
    base, factor = lineage.peak(parameters), PEAK_FACTORS[shift]
    of_batch = max(LEAST_FACTOR, min(1.0, math.sqrt(batch / lineage.batch_tokens)))
    peak = float(f"{base * factor * of_batch:.2g}")
    said.append(
        f"peak: {compact(peak)} = {compact(base)} as in {lineage.source} x {factor:g}, {shift} shift: a higher one "
        "learns more and forgets more (2308.04014)"
        + (f" x {of_batch:.2g}, square root of the batch over {human(lineage.batch_tokens)}" if of_batch < 1 else "")
        + (" (2205.10287)" if 1 > of_batch > LEAST_FACTOR else ", not below 0.1 (2205.10287)" if of_batch < 1 else "")
    )
    return peak


def _passes(store: TokenStore | None, wanted: float, length: int, name: str, said: list[str]) -> float:
    """Whole passes over a store that the budget needs."""
    if store is None:
        return 1.0
    if not (there := store.rows(length) * length):
        raise ConfigError(f"{store.folder}: holds no row of {length:,} tokens; give a larger store")
    # The last row of a pass and the rounding of shares to rows are beyond the budget's own arithmetic.
    passes = math.ceil((wanted + length) / there)
    if passes > MOST_EPOCHS:
        share = wanted / there
        raise ConfigError(
            f"{store.folder}: {human(wanted)} tokens would be {share:.3g} passes over the {human(there)} it holds, and "
            f"beyond {MOST_EPOCHS} repeated data teach little (2305.16264); give fewer TOKENS or a larger store"
        )
    if passes > 1:
        said.append(f"{name}: up to {passes} passes over {human(there)} tokens; up to 4 cost little (2305.16264)")
    return float(passes)


def _has_validation(store: TokenStore, name: str, said: list[str]) -> bool:
    if "validation" in store.manifest.get("splits", {}):
        return True
    loss = "what is forgotten" if name == "replay" else "what is learned"
    said.append(f"{name}: {store.folder} holds nothing out, so {loss} is not measured; prepare it with --validation")
    return False


def _model(spec: DecoderSpec, parameters: int) -> Any:
    """The model as it was, in half precision and with recomputed activations where its size calls for it."""
    dtype = "bfloat16" if parameters >= HALF_FROM else "float32"
    remat = "full" if parameters >= RECOMPUTE_FROM else "none"
    return c.model(**{**to_dict(spec), "compute_dtype": dtype, "remat": remat})


def _accumulate(sequences: int, length: int) -> int:
    """Micro-batches, by memory: a power of two, as the rows are."""
    return 1 << max(0, math.ceil(math.log2(sequences * length / MICRO_BATCH)))


def _tokenizer(folder: str) -> Any:
    """That of the model, which the stores are checked against; without one, theirs."""
    there = any((Path(folder).expanduser() / name).is_file() for name in ("tokenizer.json", "tokenizer.model"))
    return c.tokenizer(kind="file", path=folder if there else None)


def _upstream(path: str, stores: dict[str, TokenStore] | None, length: int) -> Any:
    """What the model saw. A Megatron pair of another tool was shuffled beforehand, and is read in its order."""
    if stores is None or stores["replay"].manifest:
        return c.source(store=path)
    sizes = stores["replay"].shards[0].files.sizes
    rows = "stored" if sizes.min() == sizes.max() == length + 1 else "packed"
    return c.source(store=path, order="stored", rows=rows)


def _headline(given: Given, parameters: int, example: DecoderSpec | None) -> str:
    what = f"{given.model} ({human(parameters)} parameters) on {human(given.tokens)} tokens of {given.new} with replay"
    what += f" of {given.replay}; chosen, where you override nothing:"
    return what if example is None else f"an example, which needs an argument to run: {what}"

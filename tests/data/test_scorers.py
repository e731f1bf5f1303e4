"""Scorers: a proper distribution, the formula by hand, better on its own domain, and the losses of a checkpoint."""

import math
import sys
import types

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cpt.data.corpora._base import Part
from cpt.data.scorers import ngram as module
from cpt.data.scorers._base import ScorerSpec, scorer_of
from cpt.data.scorers.kenlm import kenlm
from cpt.data.scorers.ngram import NGrams, ngram
from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import TokenizerSpec
from cpt.data.tokenizers.bpe import bpe
from cpt.data.tokenizers.byte import byte
from cpt.data.tokenizing import Options, prepare
from cpt.errors import ConfigError, DataError, RunError

documents_of_ids = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=8)


def trained(documents, vocab_size=7, order=3, max_ngrams=1 << 24) -> NGrams:
    model = NGrams(vocab_size, order, max_ngrams)
    model.count(iter([np.array(d) for d in documents]))
    return model


@given(documents_of_ids, st.integers(1, 4), st.lists(st.integers(0, 6), max_size=4), st.sampled_from([7, 10, 1 << 24]))
def test_every_history_has_a_distribution_without_zeros(documents, order, history, most):
    model = trained(documents, order=order, max_ngrams=most)
    place = np.arange(len(history) + 1)
    p = [model.probability(np.array([*history, w]), place)[-1] for w in range(7)]
    assert min(p) > 0 and sum(p) == pytest.approx(1.0)


@given(documents_of_ids, st.integers(1, 3), documents_of_ids)
def test_probabilities_are_the_formula(documents, order, asked):
    """Witten-Bell by its recursion, over counts made one by one."""
    counts: dict[tuple, int] = {}
    for d in documents:
        for n in range(1, order + 1):
            for i in range(n - 1, len(d)):
                key = tuple(d[i - n + 1 : i + 1])
                counts[key] = counts.get(key, 0) + 1

    def p(history, w):
        following = {k: c for k, c in counts.items() if k[:-1] == history}
        lower = p(history[1:], w) if history else 1 / 7
        total = sum(following.values())
        return (
            (following.get((*history, w), 0) + len(following) * lower) / (total + len(following))
            if following
            else lower
        )

    expected = [-np.mean([math.log(p(tuple(d[max(0, i - order + 1) : i]), w)) for i, w in enumerate(d)]) for d in asked]
    assert trained(documents, order=order).score([np.array(d) for d in asked]) == pytest.approx(expected)


def test_counting_in_chunks_is_counting_at_once(monkeypatch):
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 50, rng.integers(1, 40)) for _ in range(200)]
    whole = trained(documents, 50)
    monkeypatch.setattr(module, "CHUNK_TOKENS", 100)
    parts = trained(documents, 50)
    assert parts.tokens == whole.tokens
    for a, b in zip(parts._tables, whole._tables, strict=True):
        assert all(np.array_equal(getattr(a, f), getattr(b, f)) for f in ("keys", "counts", "histories", "totals"))


def test_the_memory_is_bounded_and_the_commonest_stay(monkeypatch):
    monkeypatch.setattr(module, "CHUNK_TOKENS", 100)
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 50, 30) for _ in range(300)]
    common = [np.array([1, 2, 3, 4])] * 200
    documents = [d for pair in zip(noise, common + common, strict=False) for d in pair]
    model, exact = trained(documents, 50, max_ngrams=400), trained(documents, 50)
    assert len(exact._tables[2].keys) > 5000
    sizes = [len(t.keys) for t in model._tables]
    assert sizes[0] == 50 and all(300 <= n <= 400 for n in sizes[1:])
    assert [set(t.keys) <= set(e.keys) for t, e in zip(model._tables, exact._tables, strict=True)] == [True] * 3
    assert model.score(common[:1])[0] < exact.score(noise[:1])[0] - 1
    for t, e in zip(model._tables, exact._tables, strict=True):  # what comes again and again was never forgotten
        common_keys = e.keys[e.counts >= 200]
        assert len(common_keys) and np.isin(common_keys, t.keys).all()
        assert np.array_equal(t.counts[np.isin(t.keys, common_keys)], e.counts[e.counts >= 200])


@given(st.lists(st.integers(1, 4), min_size=1, max_size=40), st.integers(1, 40))
def test_the_rarest_are_forgotten(counts, most):
    keys, counts = np.arange(len(counts)), np.array(counts, np.int32)
    left, of = module._commonest(keys, counts, most)
    assert np.array_equal(counts[left], of) and np.array_equal(left, np.unique(left))
    assert len(left) == (len(keys) if len(keys) <= most else max(1, 3 * most // 4))
    gone = np.delete(counts, left)
    assert not len(gone) or gone.max() <= of.min()


def test_counting_again_begins_anew():
    model = trained([[1, 2, 3]])
    model.count(iter([np.array([4, 5])]))
    assert model.tokens == 2 and model._tables[0].keys.tolist() == [4, 5]


def test_orders_that_do_not_fit():
    with pytest.raises(ConfigError, match="--max_ngrams: 0 is out of range"):
        NGrams(10, 2, 0)
    with pytest.raises(ConfigError, match=r"--order: 4 is out of range \(1 to 3 with 50,304 ids\)"):
        NGrams(50_304, 4)
    with pytest.raises(ConfigError, match="--order: 0 is out of range"):
        NGrams(50_304, 0)
    assert np.isnan(trained([[1]]).score([np.array([], int)])).all()


PEOPLE = [f"{a} {b}" for a in ("old", "tall", "small") for b in ("man", "dog")]
PLACES = [f"{c} and said that it was {d}" for c in ("house", "river") for d in ("late", "cold", "far away", "done")]
PROSE = [f"the {who} walked to the {where}" for who in PEOPLE for where in PLACES]
CODE = [f"def {a}({b}):\n    return {b} + {c}" for a in ("f", "run", "main") for b in "xyz" for c in range(8)]


@pytest.fixture(scope="module")
def stores(tmp_path_factory):
    root = tmp_path_factory.mktemp("scorers")
    tokenizer = bpe(TokenizerSpec(vocab_size=320), lambda: iter([*PROSE, *CODE]))
    for name, documents in (("prose", PROSE), ("code", CODE)):
        prepare([Part(name, lambda d=documents: iter(d))], tokenizer, root / name, Options(validation=0.2), {})
    return root, tokenizer


def test_text_of_the_reference_scores_better_than_other_text_and_than_disorder(stores):
    root, tokenizer = stores
    spec = ScorerSpec("ngram", tokenizer, reference=TokenStore.open(root / "prose"))
    score = ngram(spec).make()
    rng = np.random.default_rng(0)
    prose, code = (
        [ids for _, _, ids in TokenStore.open(root / n, "validation").documents()] for n in ("prose", "code")
    )
    mine, other, mixed = score(prose).mean(), score(code).mean(), score([rng.permutation(d) for d in prose]).mean()
    assert mine + 1 < mixed and mine + 1 < other
    one = ngram(ScorerSpec("ngram", tokenizer, reference=spec.reference, order=1)).make()
    assert mine + 1 < one(prose).mean()
    little = ngram(ScorerSpec("ngram", tokenizer, reference=spec.reference, reference_tokens=20)).make()
    assert little(prose).mean() > mine


def test_a_reference_of_another_tokenizer_is_refused(stores):
    root, _ = stores
    with pytest.raises(DataError, match=r"prose: made with another tokenizer \(.*\) than the store that is scored"):
        ngram(ScorerSpec("ngram", byte(), reference=TokenStore.open(root / "prose")))
    with pytest.raises(ConfigError, match="--reference: the ngram scorer needs"):
        ngram(ScorerSpec("ngram", byte()))

    for tokens in (0, 2**31):
        with pytest.raises(ConfigError, match=r"--reference_tokens: [\d,]+ is out of range"):
            ngram(ScorerSpec("ngram", byte(), reference=TokenStore.open(root / "prose"), reference_tokens=tokens))


@given(st.lists(st.integers(1, 30), min_size=1, max_size=60), st.integers(1, 400))
def test_a_part_of_the_reference_comes_from_all_of_it(sizes, tokens):
    """A store has one domain after the other: what is read follows the line from nothing to `tokens` at the end."""

    class Store:
        n_tokens = sum(sizes)

        def documents(self):
            return ((i, "", np.full(n, i)) for i, n in enumerate(sizes))

    wanted = min(tokens, sum(sizes))
    read = [ids[0] for ids in module._spread(Store(), tokens)]
    for n in range(1, len(sizes) + 1):
        taken = sum(sizes[i] for i in read if i < n)
        assert abs(taken - wanted * sum(sizes[:n]) / sum(sizes)) <= max(sizes)


def test_a_scorer_says_what_it_is_before_it_works(stores, tmp_path):
    root, tokenizer = stores
    spec = ScorerSpec("ngram", tokenizer, reference=TokenStore.open(root / "prose"))
    fingerprint = TokenStore.open(root / "prose").fingerprint
    expected = dict(kind="ngram", reference=fingerprint, order=3, reference_tokens=100_000_000, max_ngrams=1 << 24)
    assert scorer_of(spec).identity == expected
    with pytest.raises(ConfigError, match=r"--scorer=builtins:repr: gives str; it must give"):
        scorer_of(ScorerSpec("builtins:repr", tokenizer))


def test_kenlm_is_asked_line_by_line(monkeypatch, tmp_path):
    """With a stand-in for the library, which is not installed: log10 of a sentence is minus its words, less 1."""
    asked = []

    class Model:
        def __init__(self, path):
            if "none" in path:
                raise OSError("no such file")

        def score(self, sentence, bos, eos):
            asked.append((sentence, bos, eos))
            return -len(sentence.split()) - 1

    monkeypatch.setitem(sys.modules, "kenlm", types.SimpleNamespace(Model=Model))
    for name in ("m.arpa", "none.arpa"):
        (tmp_path / name).write_text(name)
    scorer = kenlm(ScorerSpec("kenlm", byte(), model=tmp_path / "m.arpa"))
    found = scorer.make()([np.frombuffer(t.encode(), np.uint8) for t in ("one  two\n\nthree", " \n")])
    assert asked == [("one two", True, True), ("three", True, True)]
    assert found[0] == pytest.approx(math.log(10)) and np.isnan(found[1])
    with pytest.raises(DataError, match=r"none\.arpa: KenLM cannot read it"):
        kenlm(ScorerSpec("kenlm", byte(), model=tmp_path / "none.arpa")).make()
    (tmp_path / "m.arpa").write_text("another model in its place")
    assert kenlm(ScorerSpec("kenlm", byte(), model=tmp_path / "m.arpa")).identity != scorer.identity
    with pytest.raises(DataError, match=r"gone\.arpa: cannot be read \(No such file"):
        kenlm(ScorerSpec("kenlm", byte(), model=tmp_path / "gone.arpa"))
    monkeypatch.setitem(sys.modules, "kenlm", None)
    with pytest.raises(ConfigError, match=r"KenLM is not installed; `pip install 'cpt\[kenlm\]'`"):
        kenlm(ScorerSpec("kenlm", byte(), model=tmp_path / "m.arpa"))


def test_the_checkpoint_of_a_run_scores_as_its_model_does(tmp_path):
    import io

    import jax
    import toy
    from rich.console import Console

    from cpt.config import load
    from cpt.data.preparing import open_sources
    from cpt.data.scorers.checkpoint import checkpoint
    from cpt.plan import resolve
    from cpt.training import loop
    from cpt.training.feed import Data
    from cpt.training.scoring import load_run
    from cpt.training.workdir import prepare_workdir

    config = toy.get_config(str(tmp_path))
    config.phases.first.steps = config.phases.second.steps = 4
    config.stores = str(tmp_path / "stores")
    plan = resolve(load(config))
    sources, tokenizer = open_sources(plan.spec.sources, plan.spec.tokenizer, tmp_path / "stores", lambda _: None)
    prepare_workdir(tmp_path / "run")
    loop.train(plan, Data(sources, tokenizer), tmp_path / "run", Console(file=io.StringIO()))
    scorer = checkpoint(ScorerSpec("checkpoint", tokenizer, workdir=tmp_path / "run"))
    score = scorer.make()
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, 256, n) for n in (1, 31, 32, 33, 100, 0)]
    run = load_run(tmp_path / "run")
    for ids, found in zip(documents, score(documents), strict=True):
        nats = 0.0
        for first in range(0, len(ids), 32):  # one window at a time, of its own length
            part = ids[first : first + 32]
            row = np.concatenate([[tokenizer.eod_id], part, np.zeros(32 - len(part), int)])[None].astype(np.int32)
            nats += float(np.asarray(jax.device_get(run.nats(row)))[0, : len(part)].sum())
        assert found == pytest.approx(nats / len(ids), rel=1e-4) if len(ids) else np.isnan(found)
    assert score(documents[:3]) == pytest.approx(score(documents)[:3], rel=1e-4)
    # Those of every next id are a distribution, so they are of that id, after those before it.
    prefix = documents[1][:5]
    totals = score([prefix, *(np.append(prefix, w) for w in range(plan.spec.model.vocab_size))])
    assert np.exp(5 * totals[0] - 6 * totals[1:]).sum() == pytest.approx(1.0, rel=1e-3)
    with pytest.raises(RunError, match="no checkpoint of step 3"):
        load_run(tmp_path / "run", 3)
    with pytest.raises(RunError, match=r"no plan\.json in it"):
        checkpoint(ScorerSpec("checkpoint", tokenizer, workdir=tmp_path))
    with pytest.raises(DataError, match="trained with another tokenizer"):
        other = bpe(TokenizerSpec(vocab_size=300), lambda: iter(PROSE))
        checkpoint(ScorerSpec("checkpoint", other, workdir=tmp_path / "run"))
    # What is kept belongs to these parameters, wherever they lie and however they were asked for.
    of = {n: checkpoint(ScorerSpec("checkpoint", tokenizer, workdir=tmp_path / "run", step=n)).identity for n in (4, 8)}
    assert of[8] == scorer.identity and scorer.identity["step"] == 8
    assert of[4]["parameters"] != of[8]["parameters"]
    (tmp_path / "run").rename(tmp_path / "moved")
    assert checkpoint(ScorerSpec("checkpoint", tokenizer, workdir=tmp_path / "moved")).identity == scorer.identity
    with pytest.raises(ConfigError, match="--workdir: the checkpoint scorer needs"):
        checkpoint(ScorerSpec("checkpoint", tokenizer))

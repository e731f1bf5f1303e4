"""Likelihoods and greedy continuations of requests of many lengths, against one token at a time."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.evaluators import scored_windows
from cpt.evaluators.scored_windows import HarnessModel, Stop, model_scores, windows
from cpt.models.base import build
from cpt.models.spec import ModelSpec
from cpt.objectives.cross_entropy import cross_entropy

EOD = ByteTokenizer.eod_id
CONTEXT = 40
MODEL = build(ModelSpec(layers=2, width=32, heads=4, vocab_size=260, context=CONTEXT))


@pytest.fixture(scope="module")
def params():
    """Loud enough that no two tokens are about as likely."""
    return jax.tree.map(lambda x: x * 4, MODEL.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def asked(params):
    """The model, and the shapes it was asked for."""
    scores, shapes = model_scores(MODEL, params), []

    def counted(windows_RxM):
        shapes.append(windows_RxM.shape)
        return scores(windows_RxM)

    return HarnessModel(counted, ByteTokenizer(), CONTEXT, rows=4), shapes


@pytest.fixture(scope="module")
def log_probabilities(params):
    """`ids -> [V]` of what follows them, the straightforward way."""

    @jax.jit
    def rows(ids_1xL):
        return jax.nn.log_softmax(MODEL.apply(params, ids_1xL)[0] @ MODEL.head(params), axis=-1)

    def after(ids):
        assert 1 <= len(ids) <= CONTEXT
        return np.asarray(rows(jnp.asarray([[*ids, *[7] * (CONTEXT - len(ids))]])))[len(ids) - 1].astype(np.float64)

    return after


def draw(rng, n):
    return rng.integers(0, 256, n).tolist()


def test_scores_are_the_cross_entropy_and_the_argmax(params, monkeypatch):
    windows_RxM = np.random.default_rng(0).integers(0, 256, (5, 21)).astype(np.int32)
    hidden = MODEL.apply(params, jnp.asarray(windows_RxM[:, :-1]))
    expected = cross_entropy(hidden, MODEL.head(params), jnp.asarray(windows_RxM[:, 1:]))
    for at_once in (scored_windows.LOGITS_AT_ONCE, 2 * 20 * 260, 1):  # all rows together, two of five, one
        monkeypatch.setattr(scored_windows, "LOGITS_AT_ONCE", at_once)
        nats, best = model_scores(MODEL, params)(windows_RxM)
        np.testing.assert_allclose(nats, expected, rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(best, (hidden @ MODEL.head(params)).argmax(-1))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    sharded, _ = model_scores(MODEL, params, NamedSharding(mesh, PartitionSpec("data")))(windows_RxM)
    np.testing.assert_allclose(sharded, expected, rtol=1e-5, atol=1e-5)


def test_requests_of_all_lengths_in_their_order(asked, log_probabilities):
    """Too long ones are cut on the left; each answer is that of its request, whatever was asked beside it."""
    rng = np.random.default_rng(1)
    requests = [(draw(rng, rng.integers(1, 60)), draw(rng, rng.integers(1, CONTEXT + 1))) for _ in range(23)]
    # One that is greedy: the likeliest token, twice.
    first = [1, 2, 3]
    best = int(log_probabilities(first).argmax())
    requests.insert(5, (first, [best, int(log_probabilities([*first, best]).argmax())]))
    requests.insert(9, (first, [best, int(log_probabilities([*first, best]).argmin())]))
    requests.insert(11, (first, [int(log_probabilities(first).argmin()), 5]))
    done = []
    model, shapes = asked
    shapes.clear()
    got = model.loglikelihoods(requests, done.append)
    assert sum(done) == len(requests) and set(shapes) == {(4, 33), (4, 41)} and len(shapes) == -(-len(requests) // 4)
    for (given, wanted), (total, greedy) in zip(requests, got, strict=True):
        row = [*given, *wanted][-(CONTEXT + 1) :]
        start, expected, all_best = len(row) - len(wanted), 0.0, True
        for t in range(start, len(row)):
            log_p = log_probabilities(row[:t])
            expected += log_p[row[t]]
            all_best &= int(log_p.argmax()) == row[t]
        assert total == pytest.approx(expected, rel=1e-5) and greedy == all_best
    assert [i for i, (_, greedy) in enumerate(got) if greedy] == [5]


@pytest.mark.parametrize("n", [0, 1, 39, 40, 41, 79, 80, 81, 130])
def test_each_token_of_a_long_text_once(n):
    text = list(range(n))
    pieces = list(windows([EOD], text, CONTEXT))
    assert [i for ids, scored in pieces for i in ids[len(ids) - scored :]] == text
    for ids, scored in pieces:
        assert scored < len(ids) <= CONTEXT + 1
        assert len(ids) == min(CONTEXT + 1, ids[-1] + 2)  # as far back as it may
        assert ids == [EOD, *text][ids[-1] + 2 - len(ids) : ids[-1] + 2]


def test_a_long_text_is_the_sum_of_its_tokens(asked, log_probabilities):
    text = draw(np.random.default_rng(2), 95)
    (got, greedy), empty = asked[0].loglikelihoods([([EOD], text), ([EOD], [])])
    full, expected = [EOD, *text], 0.0
    for t in range(1, len(full)):
        last = min(-(-t // CONTEXT) * CONTEXT, len(text))  # of the tokens that are scored together with it
        expected += log_probabilities(full[max(0, last - CONTEXT) : t])[full[t]]
    assert got == pytest.approx(expected, rel=1e-6) and not greedy
    assert empty == (0.0, True)


def greedy_text(log_probabilities, prompt, tokens):
    ids = list(prompt[tokens - CONTEXT :])
    first = len(ids)
    for _ in range(tokens):
        ids.append(int(log_probabilities(ids).argmax()))
        if ids[-1] == EOD:
            return ByteTokenizer().decode(ids[first:-1])
    return ByteTokenizer().decode(ids[first:])


def test_greedy_continuations_in_their_order(asked, log_probabilities):
    rng = np.random.default_rng(3)
    prompts = [draw(rng, n) for n in (3, 70, 1, 40, 12, 39)]
    stops = [Stop(n) for n in (9, 12, 0, 1, 1000, 5)]
    model, shapes = asked
    shapes.clear()
    got = model.continuations(prompts, stops)
    expected = [
        greedy_text(log_probabilities, p, min(s.tokens, CONTEXT - 1)) for p, s in zip(prompts, stops, strict=True)
    ]
    assert got == expected and got[2] == "" and all(got[i] for i in (0, 1, 4))
    assert set(shapes) <= {(4, 33), (4, 41)} and len(shapes) <= 2 * CONTEXT


class Cycle:
    """A model for which after each token the next of a text is certain."""

    def __init__(self, text):
        self.text, self.passes = text, 0

    def __call__(self, windows_RxM):
        self.passes += 1
        following = np.zeros(260, np.int32)
        following[self.text[:-1]] = self.text[1:]
        return np.zeros(windows_RxM[:, 1:].shape, np.float32), following[windows_RxM[:, :-1]]


@pytest.mark.parametrize(
    ("stop", "expected", "passes"),
    [
        (Stop(50), "bcdefgh", 8),  # up to the end of the document, which is no text
        (Stop(3), "bcd", 3),
        (Stop(50, ("e",)), "bcd", 4),
        (Stop(50, ("gh", "de", "ef")), "bc", 4),
        (Stop(50, ("x",)), "bcdefgh", 8),
    ],
)
def test_where_a_continuation_ends(stop, expected, passes):
    cycle = Cycle([*b"abcdefgh", EOD])
    model = HarnessModel(cycle, ByteTokenizer(), 64, rows=2)
    assert model.continuations([list(b"xa"), list(b"xag")], [stop, Stop(1)]) == [expected, "h"]
    assert cycle.passes == passes


def test_one_token_is_enough_not_to_be_greedy():
    """Also where it is in another window than the last."""
    text = [*b"abcdefgh"] * 4
    model = HarnessModel(Cycle([*b"abcdefgha"]), ByteTokenizer(), 10, rows=3)
    spoilt = [[*text[:i], 7, *text[i + 1 :]] for i in range(len(text))]
    answers = model.loglikelihoods([([ord("h")], ids) for ids in (text, *spoilt)])
    assert [greedy for _, greedy in answers] == [True] + [False] * len(text)

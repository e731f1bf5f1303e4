"""Probes of batches, questions and copies against what their definitions say, and all probes on any devices."""

import json
import math
import os
import subprocess
import sys
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.errors import ConfigError
from cpt.evaluators.probes._base import ProbeContext
from cpt.evaluators.probes._questions import Question, continuations
from cpt.evaluators.probes.choice import choice, scores
from cpt.evaluators.probes.copy import copy, doubled
from cpt.evaluators.probes.gradients import gradients
from cpt.models.base import build
from cpt.models.spec import ModelSpec
from cpt.objectives.cross_entropy import cross_entropy

LENGTH, VOCAB, STEPS = 12, 257, 5
MODEL = build(ModelSpec(layers=2, width=16, heads=2, vocab_size=VOCAB, context=LENGTH))
NEW, OLD = 0, 1


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(0)))


def rows(n: int, seed: int = 0, end: int | None = None) -> np.ndarray:
    """[n, LENGTH + 1] ids; every fourth is the end of a document where one is given."""
    windows = np.random.default_rng(seed).integers(0, VOCAB, (n, LENGTH + 1), np.int32)
    if end is not None:
        windows[:, 3::4] = end
    return windows


def nats_of(params, tokens, targets, segments=None):
    return cross_entropy(MODEL.apply(params, tokens, segments), MODEL.head(params), targets)


def flat(tree) -> np.ndarray:
    return np.concatenate([np.asarray(x, np.float64).ravel() for x in jax.tree.leaves(tree)])


# ---- gradients ----
def run_context(windows, source_B, accumulate=1, masks=False, weights=None, sets=None, **options) -> ProbeContext:
    batch = {
        "tokens_BxL": windows[:, :-1],
        "targets_BxL": windows[:, 1:],
        "weights_BxL": np.ones((len(windows), LENGTH), np.float32) if weights is None else weights,
        "source_B": np.array(source_B, np.int32),
    }
    if masks:
        batch["segments_BxL"] = segments_of(windows)
    columns = [SimpleNamespace(role="new"), SimpleNamespace(role="replay"), SimpleNamespace(role="new")]
    plan = SimpleNamespace(
        total_steps=STEPS,
        phase_at=lambda step: SimpleNamespace(columns=columns, first_step=0),
        spec=SimpleNamespace(
            evaluation=SimpleNamespace(rows_per_pass=4),
            batch=SimpleNamespace(mask_documents=masks, sequences=len(windows), accumulate=accumulate),
        ),
    )
    sets = {"old": rows(6, 9)} if sets is None else sets
    return ProbeContext(MODEL, options, "evaluation.probes.p", sets, ByteTokenizer(), plan, lambda step: batch)


def segments_of(windows) -> np.ndarray:
    ends = windows[:, :-1] == ByteTokenizer.eod_id
    return (np.cumsum(ends, axis=1) - ends).astype(np.int32)


def alone(params, windows, weights=None, segments=None) -> np.ndarray:
    """The gradient of the mean nats of these rows and no others."""
    weights = np.ones((len(windows), LENGTH)) if weights is None else weights
    return flat(
        jax.grad(lambda p: jnp.average(nats_of(p, windows[:, :-1], windows[:, 1:], segments), weights=weights))(params)
    )


def asked(context, params, step=0):
    return {k: float(v) for k, v in gradients(context)(params, step).items()}


def expected(new, old) -> dict[str, float]:
    size = np.linalg.norm(new), np.linalg.norm(old)
    return {"norm_new": size[0], "norm_replay": size[1], "cosine": new @ old / size[0] / size[1]}


@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_gradients_are_those_of_the_rows_of_each_role_alone(accumulate, params):
    windows, source_B = rows(8), np.array([NEW, OLD, 2, OLD, 2, NEW, NEW, NEW])
    got = asked(run_context(windows, source_B, accumulate), params)
    new, old = alone(params, windows[source_B != OLD]), alone(params, windows[source_B == OLD])
    assert got == pytest.approx(expected(new, old), rel=1e-4) and abs(got["cosine"]) < 0.9


def test_the_norm_is_the_slope_of_the_loss_along_its_gradient(params):
    windows = rows(4)
    got = asked(run_context(windows, [NEW] * 3 + [OLD]), params)
    gradient = jax.grad(lambda p: nats_of(p, windows[:3, :-1], windows[:3, 1:]).mean())(params)
    size = np.linalg.norm(flat(gradient))

    def loss(h):
        moved = jax.tree.map(lambda x, g: x + h / size * g, params, gradient)
        return np.asarray(nats_of(moved, windows[:3, :-1], windows[:3, 1:]), np.float64).mean()

    assert got["norm_new"] == pytest.approx((loss(0.01) - loss(-0.01)) / 0.02, rel=1e-2)


def test_the_same_rows_pull_the_same_way(params):
    got = asked(run_context(np.concatenate([rows(2)] * 2), [NEW, NEW, OLD, OLD]), params)
    assert got["cosine"] == pytest.approx(1, abs=1e-5) and got["norm_new"] == pytest.approx(got["norm_replay"])


def test_weights_and_documents_are_those_of_training(params):
    windows, source_B = rows(4, 1, ByteTokenizer.eod_id), np.array([NEW, OLD, NEW, OLD])
    weights = np.random.default_rng(0).integers(0, 2, (4, LENGTH)).astype(np.float32)
    got = asked(run_context(windows, source_B, masks=True, weights=weights), params)
    of = [
        alone(params, windows[mine], weights[mine], segments_of(windows[mine]))
        for mine in (source_B == NEW, source_B == OLD)
    ]
    assert got == pytest.approx(expected(*of), rel=1e-4)
    assert got["norm_new"] != pytest.approx(asked(run_context(windows, source_B, masks=True), params)["norm_new"], 1e-2)


def test_without_replay_there_is_nothing_to_compare(params):
    got = asked(run_context(rows(4), [NEW] * 4), params)
    assert got["norm_new"] == pytest.approx(np.linalg.norm(alone(params, rows(4))), rel=1e-4)
    assert math.isnan(got["norm_replay"]) and math.isnan(got["cosine"])
    only_old = asked(run_context(rows(4), [OLD] * 4), params)
    assert math.isnan(only_old["norm_new"]) and only_old["norm_replay"] == pytest.approx(got["norm_new"], rel=1e-4)
    assert all(math.isnan(v) for v in asked(run_context(rows(4), [NEW, OLD] * 2), params, STEPS).values())


@pytest.mark.parametrize("masks", [False, True])
def test_a_set_stands_for_old_data_only_where_there_is_no_replay(masks, params):
    old = rows(3, 7, ByteTokenizer.eod_id)  # fewer than a batch, and no whole number of micro-batches
    windows = rows(4, 1, ByteTokenizer.eod_id)
    made = lambda source_B: run_context(windows, source_B, 2, masks, sets={"o": old}, old="o")  # noqa: E731
    segments = segments_of if masks else lambda windows: None
    new = alone(params, windows, None, segments(windows))
    got = asked(made([NEW] * 4), params)
    assert got == pytest.approx(expected(new, alone(params, old, None, segments(old))), rel=1e-4)
    replay = asked(made([NEW, NEW, OLD, OLD]), params)["norm_replay"]
    assert replay == pytest.approx(np.linalg.norm(alone(params, windows[2:], None, segments(windows[2:]))), rel=1e-4)


def test_gradients_need_a_run_and_a_set_that_there_is():
    with pytest.raises(ConfigError, match="reads the batches of a run"):
        gradients(ProbeContext(MODEL, {}, "p", {"old": rows(2)}))
    with pytest.raises(ConfigError, match=r"probes\.p\.options\.old: no evaluation set 'odl'.*\(sets: old\)"):
        gradients(run_context(rows(2), [NEW, NEW], old="odl"))


# ---- choice ----
def questions_file(tmp_path, *records) -> str:
    path = tmp_path / "questions.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records) + "\n\n")
    return str(path)


def choice_context(file, model=MODEL, **options) -> ProbeContext:
    return ProbeContext(model, {"file": file, **options}, "evaluation.probes.p", {}, ByteTokenizer())


def log_p(params, given: bytes, answer: bytes) -> float:
    """Token by token, each from the model's whole distribution."""
    total, ids = 0.0, [*given]
    for byte in answer:
        hidden = np.asarray(MODEL.apply(params, np.array([ids[-LENGTH:]])), np.float64)[0, -1]
        logits = hidden @ np.asarray(MODEL.head(params), np.float64)
        total += logits[byte] - np.log(np.exp(logits).sum())
        ids.append(byte)
    return total


def test_an_answer_has_the_probability_of_its_tokens_after_the_question(tmp_path, params):
    records = [
        {"question": "ab", "choices": ["c", "dé", "efgh"], "answer": 1, "domain": "x"},
        {"context": "hij ", "choices": ["kl", "m"], "answer": 0, "domain": "y"},
        {"question": "n", "choices": [" o", "pq", "r"], "answer": 2, "domain": "x"},
    ]
    given = [(b"ab", [" c", " dé", " efgh"]), (b"hij", [" kl", " m"]), (b"n", [" o", " pq", " r"])]
    log = [np.array([log_p(params, q, a.encode()) for a in answers]) for q, answers in given]
    sizes = [np.array([1, 3, 4]), np.array([2, 1]), np.array([1, 2, 1])]
    gold = [1, 0, 2]
    got = choice(choice_context(questions_file(tmp_path, *records)))(params, 0)
    of = {
        "accuracy": [x.argmax() == g for x, g in zip(log, gold, strict=True)],
        "accuracy_norm": [(x / n).argmax() == g for x, n, g in zip(log, sizes, gold, strict=True)],
        "gold_nats": [-x[g] for x, g in zip(log, gold, strict=True)],
        "gold_probability": [np.exp(x[g]) / np.exp(x).sum() for x, g in zip(log, gold, strict=True)],
    }
    expected = {name: np.mean(v) for name, v in of.items()}
    expected |= {f"{n}/{d}": np.mean(of[n][i]) for n in ("accuracy", "gold_nats") for d, i in (("y", slice(1, 2)),)}
    expected |= {f"{n}/x": np.mean(of[n][::2]) for n in ("accuracy", "gold_nats")}
    assert {k: float(v) for k, v in got.items()} == pytest.approx(expected, rel=1e-4)


def test_an_answer_is_the_right_one_if_it_is_the_likeliest():
    nats = jnp.array([[1.0, 2, 3], [3, 2, 9], [2, 2, 2]])
    there = np.array([[True] * 3, [True, True, False], [True] * 3])
    got = scores(nats, np.array([[1, 4, 9], [1, 1, 1], [1, 2, 4]]), there, np.array([0, 1, 1]))
    assert got["accuracy"].tolist() == [1, 1, 0]  # of equals the first counts
    assert got["accuracy_norm"].tolist() == [0, 1, 0]  # 3 / 9 < 2 / 4 < 1
    assert got["gold_nats"].tolist() == [1, 2, 2]
    np.testing.assert_allclose(got["gold_probability"], [0.6652410, 0.7310586, 1 / 3], rtol=1e-6)
    undefined = scores(nats.at[1, 0].set(jnp.nan), np.ones((3, 3)), there, np.array([0, 1, 1]))
    assert all(np.isnan(x).tolist() == [False, True, False] for x in undefined.values())


class Pairs(ByteTokenizer):
    """Pairs of bytes are one token each, so that a token may span question and answer."""

    def encode_batch(self, texts):
        return [np.array([sum(t.encode()[i : i + 2]) for i in range(0, len(t.encode()), 2)], np.int32) for t in texts]


def cut(context, answer, length=LENGTH, tokenizer=None, delimiter=" ") -> tuple[list[int], int]:
    question = Question(context, (answer, "other"), 0, None, "f:1")
    first = next(iter(continuations([question], tokenizer or ByteTokenizer(), length, delimiter, "x")))
    return first.ids.tolist(), first.scored


def test_where_a_question_ends():
    assert cut("ab", "cd") == ([*b"ab cd"], 3)
    assert cut("ab ", "cd") == ([*b"ab cd"], 3)  # its blank goes with the answer
    assert cut("ab\n", "cd") == ([*b"ab\ncd"], 3) and cut("ab", " cd") == ([*b"ab cd"], 3)
    assert cut("ab", "cd", delimiter="") == ([*b"abcd"], 2)
    assert cut("", "cd") == ([ByteTokenizer.eod_id, *b"cd"], 2)
    assert cut("abcdefghijklmn", "xy") == ([*b"cdefghijklmn xy"][-LENGTH - 1 :], 3)  # the end of the question
    assert cut("abc", "x", tokenizer=Pairs(), delimiter="") == ([ord("a") + ord("b"), ord("c") + ord("x")], 1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", r"questions\.jsonl:2: not JSON"),
        ("[1]", "2: not an object"),
        ({"choices": ["a", "b"], "answer": 0}, "2: needs the text of either `question` or `context`"),
        ({"question": "a", "context": "a", "choices": ["a", "b"], "answer": 0}, "either `question` or `context`"),
        ({"question": "a", "choices": ["a"], "answer": 0}, "2: `choices` must be a list of two or more"),
        ({"question": "a", "choices": ["a", " "], "answer": 0}, "none of them empty"),
        ({"question": "a", "choices": ["a", "b"], "answer": 2}, "2: `answer` is 2; it must be the index .* 0 to 1"),
        ({"question": "a", "choices": ["a", "b"], "answer": True}, "`answer` is True"),
        ({"question": "a", "choices": ["a", "b"], "answer": "B"}, "`answer` is 'B'"),
        ({"question": "a", "choices": ["a", "b"], "answer": 0, "domain": 3}, "2: `domain` is 3"),
        ({"question": "a", "choices": ["a", "b" * 12], "answer": 0}, "2: a choice of 13 tokens does not fit .*=12"),
    ],
)
def test_a_bad_line_is_named(line, says, tmp_path):
    file = questions_file(tmp_path, {"question": "a", "choices": ["b", "c"], "answer": 0}, line)
    with pytest.raises(ConfigError, match=r"^config error: evaluation\.probes\.p\.options\.file: .*" + says):
        choice(choice_context(file))


def test_a_file_of_questions_is_needed(tmp_path):
    with pytest.raises(ConfigError, match=r"options\.file: name a JSON lines file"):
        choice(choice_context(None))
    with pytest.raises(ConfigError, match=r"options\.file: .*nothing\.jsonl cannot be read \(No such file"):
        choice(choice_context(str(tmp_path / "nothing.jsonl")))
    with pytest.raises(ConfigError, match="holds no question"):
        choice(choice_context(questions_file(tmp_path)))
    file = questions_file(tmp_path, {"question": "a", "choices": ["b", "c"], "answer": 0})
    with pytest.raises(ConfigError, match="the run names no tokenizer"):
        choice(ProbeContext(MODEL, {"file": file}, "p"))
    with pytest.raises(ConfigError, match=r"options\.delimiter: 3 is not a text"):
        choice(choice_context(file, delimiter=3))


# ---- copy ----
def copy_context(windows=None, tokenizer=None, **options) -> ProbeContext:
    sets = {"old": rows(6) if windows is None else windows}
    return ProbeContext(MODEL, options, "evaluation.probes.p", sets, tokenizer)


def test_each_row_is_a_sequence_twice_of_ids_that_occur():
    ids = np.array([3, 5, 8, 13, 21, 34])
    made = doubled(ids, 50, 6, 0)
    assert (made[:, :6] == made[:, 6:]).all() and all(sorted(row) == ids.tolist() for row in made[:, :6])
    assert (made == doubled(ids, 50, 6, 0)).all() and (made != doubled(ids, 50, 6, 1)).any()
    assert len(np.unique(made, axis=0)) > 40
    assert set(doubled(ids[:2], 5, 6, 0).ravel()) == {3, 5}  # too few: some come again


def test_both_occurrences_are_scored_on_the_same_tokens(params):
    values = copy(copy_context(length=5, sequences=7, seed=3))(params, 0)
    made = doubled(np.unique(rows(6)), 7, 5, 3)
    nats = np.asarray(nats_of(params, made[:, :-1], made[:, 1:]))
    first, repeat = nats[:, :4].mean(), nats[:, 5:].mean()
    hidden = np.asarray(MODEL.apply(params, made[:, :-1]))[:, 5:]
    hits = ((hidden @ np.asarray(MODEL.head(params))).argmax(-1) == made[:, 6:]).mean()
    expected = {"first_nats": first, "repeat_nats": repeat, "gain": first - repeat, "accuracy": hits}
    assert {k: float(v) for k, v in values.items()} == pytest.approx(expected, rel=1e-4, abs=1e-6)


def copier(length):
    """A model that finds what stands `length - 1` places back of each token, and says it: it copies perfectly."""

    def apply(params, tokens_BxL, segments=None):
        back = jnp.pad(tokens_BxL, ((0, 0), (length - 1, 0)))[:, : tokens_BxL.shape[1]]
        return 50 * jax.nn.one_hot(back, VOCAB) * (jnp.arange(tokens_BxL.shape[1]) >= length - 1)[:, None]

    return SimpleNamespace(spec=MODEL.spec, apply=apply, head=lambda params: params["head"])


def test_a_perfect_copier_gains_everything():
    ids = np.arange(1, 40).reshape(3, 13).astype(np.int32)
    made = ProbeContext(copier(6), {"length": 6, "sequences": 20}, "p", {"old": ids})
    got = {k: float(v) for k, v in copy(made)({"head": jnp.eye(VOCAB)}, 0).items()}
    uniform = math.log(VOCAB)
    assert got == pytest.approx({"first_nats": uniform, "repeat_nats": 0, "gain": uniform, "accuracy": 1}, abs=1e-4)
    blind = {k: float(v) for k, v in copy(made)({"head": jnp.zeros((VOCAB, VOCAB))}, 0).items()}
    assert blind == pytest.approx({"first_nats": uniform, "repeat_nats": uniform, "gain": 0, "accuracy": 0}, abs=1e-4)


def test_the_end_of_a_document_is_never_copied(params):
    windows = np.array([[ByteTokenizer.eod_id, 1, 2] * 4 + [1]], np.int32)
    copy(copy_context(windows, ByteTokenizer(), length=4))(params, 0)
    with pytest.raises(ConfigError, match="fewer than two ids"):
        copy(copy_context(np.where(windows == 2, 1, windows), ByteTokenizer(), length=4))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"length": 7}, r"options\.length: two sequences of 7 tokens do not fit model\.context=12"),
        ({"length": 1}, r"options\.length: 1 must be a whole number of at least 2"),
        ({"sequences": 0}, r"options\.sequences: 0"),
        ({"seed": "x"}, r"options\.seed: 'x'"),
    ],
)
def test_options_of_copy(options, says):
    with pytest.raises(ConfigError, match=says):
        copy(copy_context(**options))


# ---- anywhere ----
EVERYWHERE = """
import sys
sys.path.insert(0, {folder!r})
import jax, numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from test_probes_text import ByteTokenizer, MODEL, NEW, OLD, rows, run_context
from cpt.evaluators.probes._base import ProbeContext
from cpt.registry import find

RULES = {{"vocab": "tensor", "heads": "tensor", "mlp": "tensor", "embed": "fsdp"}}
mesh = jax.make_mesh((2, 2, 2), ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)

def sharding(leaf, axes):
    spec = [RULES.get(a) if leaf.ndim > 1 else None for a in axes]
    fits = [a if a and n % mesh.shape[a] == 0 else None for a, n in zip(spec, leaf.shape)]
    return NamedSharding(mesh, PartitionSpec(*fits))

params = jax.tree.map(lambda x: 2 * x, MODEL.init(jax.random.key(0)))
start = jax.tree.map(lambda x: 1.5 * x, params)
spread = jax.tree.map(sharding, params, MODEL.logical_axes())
base = run_context(rows(8), [NEW, OLD] * 4, accumulate=2)
base.plan.phase_at = lambda step, phase=base.plan.phase_at(0): type(phase)(columns=phase.columns, first_step=1)
options = {{"choice": {{"file": {file!r}}}, "rankme": {{"tokens": 50}}, "gradients": {{"old": "old"}}}}
for kind in {kinds!r}:
    values = []
    for p, p0 in ((params, start), (jax.device_put(params, spread), jax.device_put(start, spread))):
        probe = find("cpt.evaluators.probes", kind, "x")(ProbeContext(**vars(base) | {{
            "options": options.get(kind, {{}}), "params_at": lambda step: p0}}))
        with jax.transfer_guard("disallow"):
            for step in (2, 3):
                found = probe(p, step)
        values.append(jax.device_get(found))
    assert all(np.isfinite(v) for v in values[0].values()), (kind, values[0])
    for name, value in values[0].items():
        np.testing.assert_allclose(values[1][name], value, rtol=2e-4, atol=1e-5, err_msg=kind + " " + name)
print("equal on", jax.device_count(), "devices")
"""


@pytest.mark.slow
def test_eight_devices_give_the_numbers_of_one_and_nothing_moves_unasked(tmp_path):
    file = questions_file(
        tmp_path, *[{"question": "a" * i, "choices": ["b", "cd", "e"], "answer": i % 3} for i in range(5)]
    )
    kinds = ("choice", "copy", "gradients", "parameters", "rankme", "spectral_alignment")
    code = EVERYWHERE.format(folder=os.path.dirname(__file__), file=file, kinds=kinds)
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **flags}, capture_output=True, text=True, timeout=400
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "equal on 8 devices" in done.stdout

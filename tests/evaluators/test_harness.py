"""lm-evaluation-harness on tasks of local files: against sums made by hand, and against its Hugging Face backend."""

import json
import math
import os
import random
import subprocess
import sys
from importlib.util import find_spec

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.errors import ConfigError, DataError
from cpt.evaluators import harness
from cpt.evaluators.harness import adapter, run_tasks
from cpt.evaluators.scored_windows import HarnessModel, Stop, model_scores, windows
from cpt.models.base import build
from cpt.models.spec import ModelSpec

needs_harness = pytest.mark.skipif(find_spec("lm_eval") is None, reason="lm_eval is not installed")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

CONTEXT = 48
SPEC = ModelSpec(layers=2, width=32, heads=4, vocab_size=257, context=CONTEXT)
WORDS = ["alpha", "beta", "gamma", "delta", "epsilon", "zeta", "eta", "theta", "iota", "kappa", "größe", "λόγος"]
CHOICE = """
task: toy_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}, cache_dir: {folder}/cache}}
output_type: multiple_choice
test_split: test
fewshot_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{gold}}}}"
metric_list:
  - {{metric: acc, aggregation: mean, higher_is_better: true}}
  - {{metric: acc_norm, aggregation: mean, higher_is_better: true}}
"""
ROLLING = """
task: toy_loss
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}, cache_dir: {folder}/cache}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: bits_per_byte}}, {{metric: byte_perplexity}}]
"""
WRITING = """
task: toy_writing
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/choice.jsonl}}, cache_dir: {folder}/cache}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[0]}}}}"
generation_kwargs: {{until: ["\\n\\n"], max_gen_toks: 6, do_sample: {sample}}}
metric_list: [{{metric: exact_match}}]
"""


def documents():
    """Questions of which some are longer than the context, and texts of which some need several windows."""
    rng = random.Random(0)

    def words(n):
        return " ".join(rng.choices(WORDS, k=n))

    choices = [
        {"question": words(n), "choices": [words(rng.randint(1, 3)) for _ in range(4)], "gold": rng.randrange(4)}
        for n in (1, 2, 3, 4, 5, 6, 7, 9, 12, 20, 2, 3)
    ]
    texts = [words(n) for n in (1, 4, 9, 30, 60)]
    texts += [("x" + words(40))[: CONTEXT + k] for k in (-1, 0, 1)] + [words(50)[: 3 * CONTEXT]]
    return choices, [{"text": t} for t in texts]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Task files and their data."""
    path = tmp_path_factory.mktemp("tasks")
    choices, texts = documents()
    for name, rows in (("choice", choices), ("texts", texts)):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for name, task in (("choice", CHOICE), ("loss", ROLLING), ("writing", WRITING)):
        (path / f"{name}.yaml").write_text(task.format(folder=path, sample="false"))
    return path


@pytest.fixture(scope="module")
def params():
    return jax.tree.map(lambda x: x * 4, build(SPEC).init(jax.random.key(1)))


@pytest.fixture(scope="module")
def model(params):
    return HarnessModel(model_scores(build(SPEC), params), ByteTokenizer(), CONTEXT)


@pytest.fixture(scope="module")
def nats(params):
    """`(ids, n) -> sum`: nats of the last `n` of one row of ids, the straightforward way."""
    net = build(SPEC)

    @jax.jit
    def rows(ids_1xL):
        return jax.nn.log_softmax(net.apply(params, ids_1xL)[0] @ net.head(params), axis=-1)

    def total(ids, n):
        inputs = ids[:-1]
        log_p = np.asarray(rows(jnp.asarray([[*inputs, *[0] * (CONTEXT - len(inputs))]])), np.float64)
        return -sum(log_p[t, ids[t + 1]] for t in range(len(inputs) - n, len(inputs)))

    return total


@needs_harness
def test_accuracy_is_that_of_brute_force(folder, model, nats):
    choices, _ = documents()
    right, right_norm = [], []
    for doc in choices:
        totals = []
        for choice in doc["choices"]:
            answer = list(f" {choice}".encode())
            ids = [*doc["question"].encode(), *answer][-(CONTEXT + 1) :]
            totals.append(nats(ids, len(answer)))
        per_letter = [t / len(c) for t, c in zip(totals, doc["choices"], strict=True)]
        right.append(int(np.argmin(totals)) == doc["gold"])
        right_norm.append(int(np.argmin(per_letter)) == doc["gold"])
    got = run_tasks(model, ["toy_choice"], include_path=folder)
    assert got.keys() == {"toy_choice"} and 0 < np.mean(right) < 1
    p, n = np.mean(right), len(right)
    expected = {"acc": p, "acc_norm": np.mean(right_norm), "acc_stderr": math.sqrt(p * (1 - p) / (n - 1))}
    assert {k: got["toy_choice"][k] for k in expected} == pytest.approx(expected)
    assert got["toy_choice"].keys() == {*expected, "acc_norm_stderr"}
    few = run_tasks(model, ["toy_choice"], include_path=folder, limit=3)
    assert few["toy_choice"]["acc"] == pytest.approx(np.mean(right[:3]))


@needs_harness
def test_solved_examples_come_before_the_question(folder, model):
    """The first question is one word: asked alone it fits in the shortest shape, after two others it does not."""
    shapes = []

    def scores(windows_RxM):
        shapes.append(windows_RxM.shape)
        return model.scores(windows_RxM)

    watched = HarnessModel(scores, ByteTokenizer(), CONTEXT)
    for shots in (None, 2):
        run_tasks(watched, ["toy_choice"], include_path=folder, num_fewshot=shots, limit=1)
    assert shapes == [(16, 33), (16, CONTEXT + 1)]


@needs_harness
def test_bits_per_byte_are_those_of_the_model(folder, model, nats):
    """Each token once, after at most a context of earlier ones; the bytes are those of the text."""
    _, texts = documents()
    total, n_bytes = 0.0, 0
    for doc in texts:
        ids = [ByteTokenizer.eod_id, *doc["text"].encode()]
        n_bytes += len(ids) - 1
        scored = 1
        while scored < len(ids):
            end = min(scored + CONTEXT, len(ids))
            total += nats(ids[max(0, end - CONTEXT - 1) : end], end - scored)
            scored = end
    assert n_bytes > 8 * CONTEXT
    got = run_tasks(model, ["toy_loss"], include_path=folder)["toy_loss"]
    assert got["bits_per_byte"] == pytest.approx(total / (math.log(2) * n_bytes), rel=1e-6)
    assert got["byte_perplexity"] == pytest.approx(math.exp(total / n_bytes), rel=1e-5)


@needs_harness
def test_windows_are_those_of_the_harness():
    from lm_eval.utils import get_rolling_token_windows

    for context in (1, 2, 7, 40):
        for n in range(4 * context + 2):
            text = list(range(1, n + 1))
            theirs = [
                ([*given, asked[-1]], len(asked)) for given, asked in get_rolling_token_windows(text, 0, context, 1)
            ]
            assert list(windows([0], text, context)) == theirs


@needs_harness
def test_continuations_of_a_task(folder, model):
    choices, _ = documents()
    lm = adapter(model)
    from lm_eval.api.instance import Instance

    def ask(question, **settings):
        return Instance("generate_until", {}, (question, settings), 0)

    settings = {"until": ["\n\n"], "max_gen_toks": 6, "do_sample": False, "temperature": 0.0}
    got = lm.generate_until([ask(c["question"], **settings) for c in choices])
    alone = [lm.generate_until([ask(c["question"], **settings)])[0] for c in choices]
    assert got == alone and len(set(got)) > 1
    result = run_tasks(model, ["toy_writing"], include_path=folder)["toy_writing"]
    assert result["exact_match"] == 0.0
    shorter = lm.generate_until([ask("alpha", until=None, max_new_tokens=2), ask("", until="", max_gen_toks=2)])
    longer = lm.generate_until([ask("alpha", until=[], max_gen_toks=6)])
    assert shorter[1] == model.continuations([[ByteTokenizer.eod_id]], [Stop(2)])[0]
    assert longer[0].startswith(shorter[0].rstrip("\ufffd")) and len(shorter[1]) <= 2


@needs_harness
def test_what_cannot_be_asked(folder, model, tmp_path):
    with pytest.raises(ConfigError, match=r"no 'toy_chioce' in lm_eval or in .*did you mean 'toy_choice'\?"):
        run_tasks(model, ["toy_chioce"], include_path=folder)
    with pytest.raises(ConfigError, match=r"tasks: name at least one"):
        run_tasks(model, [], include_path=folder)
    with pytest.raises(ConfigError, match=r"include_path: .*none is no folder"):
        run_tasks(model, ["toy_choice"], include_path=folder / "none")
    for limit in (0, 0.5, True):
        with pytest.raises(ConfigError, match=rf"limit: {limit} must be a whole number"):
            run_tasks(model, ["toy_choice"], include_path=folder, limit=limit)
    (tmp_path / "writing.yaml").write_text(WRITING.format(folder=folder, sample="true"))
    with pytest.raises(ConfigError, match=r"do_sample: continuations here are greedy"):
        run_tasks(model, ["toy_writing"], include_path=tmp_path)
    (tmp_path / "loss.yaml").write_text(ROLLING.format(folder=tmp_path))
    with pytest.raises(DataError, match=r"tasks toy_loss: their data cannot be loaded \(.*texts\.jsonl"):
        run_tasks(model, ["toy_loss"], include_path=tmp_path)
    (tmp_path / "texts.jsonl").write_text('{"text": "a"}\n{"text')
    with pytest.raises(DataError, match=r"tasks toy_loss: their data cannot be loaded"):
        run_tasks(model, ["toy_loss"], include_path=tmp_path)


class OneToken(ByteTokenizer):
    """Merges every text into a single token."""

    def encode_batch(self, texts):
        return [np.array([5], np.int32) for _ in texts]


@needs_harness
def test_a_continuation_that_the_tokenizer_merges_away(model):
    from lm_eval.api.instance import Instance

    lm = adapter(HarnessModel(model.scores, OneToken(), CONTEXT))
    with pytest.raises(DataError, match=r"harness: ' b' after 'a' is no token of its own"):
        lm.loglikelihood([Instance("loglikelihood", {}, ("a", " b"), 0)])


@needs_harness
def test_the_process_is_left_as_it_was(folder, model, monkeypatch):
    """The harness seeds Python's and numpy's generators; a run that goes on must not draw from there."""
    monkeypatch.delenv("DISABLE_MULTIPROC", raising=False)
    random.seed(5)
    np.random.seed(5)
    expected = random.random(), np.random.rand()
    random.seed(5)
    np.random.seed(5)
    run_tasks(model, ["toy_choice"], include_path=folder, limit=2)
    assert (random.random(), np.random.rand()) == expected and "DISABLE_MULTIPROC" not in os.environ


def test_without_the_package_there_is_one_line(monkeypatch, model):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    for ask in (lambda: adapter(model), lambda: run_tasks(model, ["sciq"])):
        with pytest.raises(ConfigError, match=r"harness: needs the package lm_eval: pip install 'cpt\[harness\]'"):
            ask()


def test_numbers_of_results():
    values = {"alias": "x", "acc,none": 0.5, "acc_stderr,none": "N/A", "em,strict": 1, "em_stderr,strict": 0.25}
    values |= {"sample_len": 7, "f1,none": float("nan")}
    assert harness._numbers(values) == {"acc": 0.5, "em,strict": 1.0, "em,strict_stderr": 0.25}


ALONE = """
import socket, sys
def refused(*_):
    raise OSError("a test went to the network")
socket.create_connection = socket.socket.connect = refused
import jax
from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.evaluators.harness import HarnessModel, run_tasks
assert "lm_eval" not in sys.modules
from cpt.evaluators.scored_windows import model_scores
from cpt.models.base import build
from cpt.models.spec import ModelSpec
net = build(ModelSpec(layers=1, width=16, heads=2, vocab_size=257, context=32))
model = HarnessModel(model_scores(net, net.init(jax.random.key(0))), ByteTokenizer(), 32)
print("loss", run_tasks(model, ["toy_loss"], include_path=sys.argv[1])["toy_loss"]["bits_per_byte"])
"""


@needs_harness
@pytest.mark.slow
def test_no_network_is_needed(folder):
    """A fresh model of 257 ids needs some log2(257) bits for a byte. The package is imported when it is used."""
    done = subprocess.run([sys.executable, "-c", ALONE, str(folder)], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("loss ")]
    assert 7.9 < float(line.split()[1]) < 8.6


@needs_harness
@pytest.mark.slow
@pytest.mark.parametrize("change", ["pythia", "merges"])
def test_the_same_numbers_as_the_backend_of_the_harness(folder, params, tmp_path, change):
    """An exported model and tokenizer in torch, through `HFLM`; each request too, not only their means."""
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    from cpt.data.tokenizers._base import load
    from cpt.models import convert

    if change == "pythia":
        ByteTokenizer().save(tmp_path / "tokenizer.json")
        spec = SPEC
    else:
        from cpt.data.tokenizers._base import TokenizerSpec
        from cpt.data.tokenizers.bpe import bpe

        texts = [d["text"] for d in documents()[1]]
        bpe(TokenizerSpec(vocab_size=290), lambda: iter(texts)).save(tmp_path / "tokenizer.json")
        spec = ModelSpec(layers=2, width=32, heads=4, vocab_size=300, context=20, gelu="exact")
        params = jax.tree.map(lambda x: x * 4, build(spec).init(jax.random.key(2)))
    convert.write(tmp_path / "hf", spec, params, tokenizer_file=tmp_path / "tokenizer.json")
    spec, read = convert.read(tmp_path / "hf")
    ours = HarnessModel(model_scores(build(spec), read), load(tmp_path / "hf"), spec.context)
    theirs = HFLM(pretrained=str(tmp_path / "hf"), device="cpu", dtype="float32", batch_size=3)
    assert theirs.max_length == spec.context and theirs.prefix_token_id == ours.tokenizer.eod_id
    tasks = ["toy_choice", "toy_loss"]
    mine = run_tasks(ours, tasks, include_path=folder)
    manager = TaskManager(include_path=str(folder), include_defaults=False)
    results = lm_eval.simple_evaluate(model=theirs, tasks=tasks, task_manager=manager)
    for task in tasks:
        for metric, value in mine[task].items():
            got, expected = results["results"][task][f"{metric},none"], value
            if metric == "byte_perplexity":  # of an untrained model it is in the thousands
                got, expected = math.log(got), math.log(expected)
            assert got == pytest.approx(expected, abs=1e-4), (task, metric)
    one_by_one = lm_eval.simple_evaluate(model=adapter(ours), tasks=tasks, task_manager=manager)
    largest = 0.0
    for task in tasks:
        for a, b in zip(one_by_one["samples"][task], results["samples"][task], strict=True):
            assert a["doc"] == b["doc"]
            for x, y in zip(np.ravel(a["filtered_resps"]), np.ravel(b["filtered_resps"]), strict=True):
                largest = max(largest, abs(float(x) - float(y)) / max(1.0, abs(float(y))))
    print(f"{change}: largest relative difference of a request {largest:.1e}")
    assert largest < 1e-5
    from lm_eval.api.instance import Instance

    settings = {"until": ["\n\n"], "max_gen_toks": 5, "do_sample": False}
    requests = [Instance("generate_until", {}, (d["question"][:10], settings), 0) for d in documents()[0]]
    written = adapter(ours).generate_until(requests)
    assert written == theirs.generate_until(requests) and len(set(written)) > 3

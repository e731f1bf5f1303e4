"""Each backend against the plain masked square, values and gradients; what needs a GPU is skipped without one."""

import os
import subprocess
import sys
from functools import partial
from itertools import pairwise
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cpt.models.attention import attend
from cpt.models.attention.blocked import block_of, blocked
from cpt.models.attention.choice import Choice, Work
from cpt.models.attention.cudnn import AGREES, cudnn, disagreement, documents, trial
from cpt.models.attention.reference import reference
from cpt.models.attention.splash import splash
from cpt.models.spec import BY_HAND_FROM

cudnn_module, splash_module = (sys.modules[f"cpt.models.attention.{name}"] for name in ("cudnn", "splash"))
in_blocks = partial(blocked, block=16, by_hand=True)
unrolled = partial(blocked, block=16, by_hand=False)
interpreted = partial(splash, interpret=True)
# What differs from cuDNN's own call is the kernel alone: layout, scale and causality go through the same arguments.
stand_in = partial(cudnn, implementation="xla")


def arrays(rows: int, heads: int, kv_heads: int, length: int, channels: int, dtype="float32") -> list[jax.Array]:
    """Queries, keys, values, and a weight for each output."""
    rng = np.random.default_rng(heads * length)
    shapes = [(rows, n, length, channels) for n in (heads, kv_heads, kv_heads, heads)]
    return [jnp.asarray(rng.standard_normal(shape), dtype) for shape in shapes]


def packed(rows: int, length: int, seed: int = 0) -> jax.Array:
    """A few documents per row, the first row of one-token documents and a long one."""
    ends = np.random.default_rng(seed).random((rows, length)) < 0.1
    ends[0] = np.arange(length) < 3
    return jnp.asarray(np.cumsum(ends, axis=1), jnp.int32)


def apart(backend, given: list[jax.Array], segments: jax.Array | None, truth=None) -> list[float]:
    """Largest difference to the reference of the output and of the gradients of queries, keys and values."""

    def both(attend, q, k, v, weight):
        mixed, pull = jax.vjp(lambda *qkv: attend(*qkv, segments), q, k, v)
        return mixed, *pull(weight)

    got = jax.jit(partial(both, backend))(*given)
    wanted = jax.jit(partial(both, reference))(*(truth or given))
    assert [x.dtype for x in got] == [given[0].dtype] * 4
    return [float(jnp.abs(a.astype(jnp.float32) - b).max()) for a, b in zip(got, wanted, strict=True)]


@pytest.mark.parametrize(("length", "kv_heads"), [(1, 2), (16, 4), (37, 1)])
@pytest.mark.parametrize("backend", [in_blocks, unrolled, stand_in], ids=["by hand", "derived", "cudnn's layout"])
def test_values_and_gradients_are_those_of_the_plain_square(backend, length, kv_heads):
    given = arrays(2, 4, kv_heads, length, 8)
    assert max(apart(backend, given, None)) < 5e-6
    if backend is not stand_in:
        assert max(apart(backend, given, packed(2, length))) < 5e-6


@pytest.mark.parametrize(("length", "block"), [(23, 5), (40, 39), (7, 9)])
def test_blocks_of_any_size(length, block):
    """Many small ones, one with a last block of one token, and one that is larger than the row."""
    assert max(apart(partial(blocked, block=block, by_hand=True), arrays(1, 3, 1, length, 4), packed(1, length))) < 5e-6


@pytest.mark.parametrize("backend", [in_blocks, unrolled, stand_in], ids=["by hand", "derived", "cudnn's layout"])
def test_bfloat16_stays_within_its_rounding(backend):
    given = arrays(2, 4, 2, 48, 16, "bfloat16")
    truth = [x.astype(jnp.float32) for x in given]
    assert max(apart(backend, given, None, truth)) < 0.06  # a step of bfloat16 is 1/32 of a number between 4 and 8


def test_blocks_of_real_rows_equal_the_plain_square():
    """The blocks and the backward pass that rows of this length get."""
    length = BY_HAND_FROM + 44
    assert length % block_of(length)
    assert max(apart(blocked, arrays(1, 2, 1, length, 16), packed(1, length))) < 2e-5
    assert [block_of(n) for n in (1, 128, 129, 511, 512, 1024, 2048)] == [1, 128, 64, 64, 128, 128, 256]


def test_the_backward_pass_by_hand_keeps_no_square():
    """What lies between forward and backward pass is rows [L, K] of queries, keys, values and output, and one [L].

    Derived, it is [L, L] as well.
    """

    def kept(by_hand: bool) -> int:
        _, pull = jax.eval_shape(partial(jax.vjp, partial(blocked, by_hand=by_hand)), *arrays(1, 1, 1, 512, 8)[:3])
        return sum(np.prod(x.shape) for x in jax.tree.leaves(pull))

    assert kept(by_hand=True) == 512 * (4 * 8 + 1) and kept(by_hand=False) > 512 * 512 / 2


def test_the_upper_triangle_is_left_out():
    """Multiplications of blocks: of 8 blocks, 36 of 64 squares."""
    counted = lambda f: jax.jit(f).lower(*arrays(1, 1, 1, 1024, 64)[:3]).cost_analysis()["flops"]  # noqa: E731
    assert counted(blocked) / counted(reference) == pytest.approx(36 / 64, rel=0.1)


@pytest.mark.parametrize(("length", "kv_heads"), [(128, 2), (200, 1)])
def test_splash_by_interpretation(length, kv_heads):
    given = arrays(2, 2, kv_heads, length, 32)
    assert max(apart(interpreted, given, packed(2, length))) < 2e-5
    assert length == 200 or max(apart(interpreted, given, None)) < 2e-5


def test_splash_takes_the_largest_block_that_divides_the_row(monkeypatch):
    """Smaller blocks than 512 leave more of the square out, and 640 is filled up to no multiple of 512."""
    monkeypatch.setattr(splash_module, "BLOCKS", (256, 128))
    assert max(apart(interpreted, arrays(1, 1, 1, 250, 32), None)) < 2e-5


def starts_of(segments_L: np.ndarray) -> list[tuple[int, int]]:
    """First token and length of each document, by a loop."""
    edges = [0, *[i for i in range(1, len(segments_L)) if segments_L[i] != segments_L[i - 1]], len(segments_L)]
    return [(a, b - a) for a, b in pairwise(edges)]


@settings(max_examples=20)
@given(st.lists(st.booleans(), min_size=12, max_size=12), st.sampled_from([2, 5, 14]))
def test_documents_are_found_where_they_begin(ends, most):
    segments_1xL = np.cumsum([ends], axis=1)
    starts, lengths, fits = documents(jnp.asarray(segments_1xL), most)
    true = starts_of(segments_1xL[0])
    assert bool(fits) == (len(true) <= most)
    if fits:
        filled = true + [(-1, -1)] * (most - len(true))
        assert list(zip(starts[0].tolist(), lengths[0].tolist(), strict=True)) == filled


def documents_by_mask(q, k, v, starts_BxM, lengths_BxM):
    """What cuDNN is to do with documents, from the same description of them."""
    at = jnp.arange(q.shape[1])
    inside = (at >= starts_BxM[..., None]) & (at < (starts_BxM + lengths_BxM)[..., None])
    segments = jnp.argmax(inside, axis=1)
    return reference(*(x.transpose(0, 2, 1, 3) for x in (q, k, v)), segments).transpose(0, 2, 1, 3)


def test_rows_of_too_many_documents_are_computed_in_blocks(monkeypatch):
    """64 tokens have room for two documents: rows of two go through offsets, rows of three must not."""
    monkeypatch.setattr(cudnn_module, "_packed", documents_by_mask)
    given = arrays(2, 2, 1, 64, 8)
    of_two, of_three = (jnp.asarray(np.arange(64)[None].repeat(2, 0) // n, jnp.int32) for n in (40, 30))
    of_three = of_three.at[0].set(of_two[0])  # one such row is enough
    assert max(apart(cudnn, given, of_two)) < 5e-6 and max(apart(cudnn, given, of_three)) < 5e-6
    monkeypatch.setattr(cudnn_module, "_packed", lambda q, *_: jnp.full_like(q, 7))
    assert (cudnn(*given[:3], of_two) == 7).all() and not (cudnn(*given[:3], of_three) == 7).any()


def test_too_many_numbers_for_one_call_are_several_calls(monkeypatch):
    given, seen = arrays(5, 2, 1, 8, 8), []
    monkeypatch.setattr(cudnn_module, "MOST_ELEMENTS", 2 * 2 * 8 * 8)
    real = jax.nn.dot_product_attention
    monkeypatch.setattr(
        jax.nn, "dot_product_attention", lambda q, *a, **kw: (seen.append(len(q)), real(q, *a, **kw))[1]
    )
    assert max(apart(stand_in, given, None)) < 5e-6 and seen == [1, 2, 2]


def test_the_trial_finds_what_is_wrong():
    assert disagreement(partial(blocked, block=256), 2, 8, "bfloat16", packed=True) == ""
    no_documents = lambda q, k, v, _: reference(q, k, v)  # noqa: E731
    assert disagreement(no_documents, 1, 8, "float32", packed=True).startswith("its output is ")
    other_heads = lambda q, k, v, _: reference(q, k[:, ::-1], v)  # noqa: E731
    assert disagreement(other_heads, 2, 8, "float32", packed=False).startswith("its output is ")

    @jax.custom_vjp
    def stretched(v):
        return v

    stretched.defvjp(lambda v: (v, None), lambda _, g: ((1 + 2 * AGREES) * g,))
    wrong_gradient = lambda q, k, v, _: reference(q, k, stretched(v))  # noqa: E731
    assert disagreement(wrong_gradient, 1, 8, "float32", packed=False).startswith("its dv is 6.0% off the reference")


def test_a_trial_that_fails_says_why_also_while_a_model_is_traced():
    """There is no cuDNN here: the line of the private module comes back instead of an exception."""
    work = Work("gpu", "NVIDIA H200", "bfloat16", 4, 2, 64, 128, capability="9.0")
    said = []
    jax.jit(lambda x: (said.append(trial(work)), x + 1)[1])(1.0)
    assert said == [trial(work)] and said[0].startswith("it fails on this device (")


def test_the_trial_gives_numbers_while_a_model_is_traced(monkeypatch):
    monkeypatch.setattr(cudnn_module, "cudnn", stand_in)
    said = []
    with jax.transfer_guard("allow"):
        jax.jit(lambda x: (said.append(trial(Work("gpu", "x", "bfloat16", 5, 1, 24, 64))), x + 1)[1])(1.0)
    assert said == [""]


@pytest.mark.parametrize("with_documents", [False, True])
def test_the_program_for_cuda_holds_the_calls_of_cudnn(with_documents, monkeypatch):
    """Lowered for a Hopper that is not there, so the questions about the one that is are answered here."""
    from jax._src.cudnn import fused_attention_stablehlo as private

    monkeypatch.setattr(private, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(private, "check_compute_capability", lambda _: True)
    monkeypatch.setattr(private, "is_cuda_compute_capability_equal", lambda _: False)
    q, k, v, weight = arrays(2, 4, 2, 256, 64, "bfloat16")
    segments = packed(2, 256) if with_documents else None
    loss = lambda *qkv: (cudnn(*qkv, segments) * weight).astype(jnp.float32).sum()  # noqa: E731
    text = jax.jit(jax.grad(loss, argnums=(0, 1, 2))).trace(q, k, v).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaSoftmax(") == text.count("@__cudnn$fmhaSoftmaxBackward(") == 1
    assert ("PADDING_CAUSAL" in text) == with_documents


@pytest.mark.gpu
@pytest.mark.parametrize("with_documents", [False, True])
@pytest.mark.parametrize("group", [1, 4])
def test_cudnn_on_a_gpu(group, with_documents):
    """Dense attention agrees. Documents may not, with some versions: then the launch says so and takes blocks."""
    if jax.default_backend() != "gpu":
        pytest.skip("no GPU")
    said = disagreement(cudnn, group, 64, "bfloat16", with_documents)
    if said and with_documents:
        pytest.xfail(said)
    assert said == ""


def test_the_trial_is_not_stopped_by_a_loop_that_moves_nothing_unasked(monkeypatch):
    monkeypatch.setattr("cpt.models.attention.cudnn.cudnn", reference)
    with jax.transfer_guard("disallow"):
        assert trial(Work("gpu", "x", "bfloat16", 3, 1, 40, 64)) == ""


def test_a_kernel_is_not_left_to_the_partitioner(monkeypatch):
    """A model that is not told its mesh, on several devices: no partitioner can split a kernel."""
    monkeypatch.setattr("cpt.models.attention.chosen", lambda asked, work: Choice("splash", ""))
    monkeypatch.setattr(jax, "device_count", lambda: 4)
    q = k = v = jnp.ones((1, 2, 8, 4))
    assert "pallas" not in str(jax.make_jaxpr(lambda *qkv: attend(*qkv))(q, k, v))
    monkeypatch.setattr(jax, "device_count", lambda: 1)
    assert "pallas" in str(jax.make_jaxpr(lambda *qkv: attend(*qkv))(q, k, v))


@pytest.mark.slow
def test_kernels_on_a_mesh_and_for_tpus():
    """Eight simulated devices, and where libtpu is installed eight TPU chips that are not there."""
    script = Path(__file__).parent / "attention_devices.py"
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=8"}
    done = subprocess.run([sys.executable, script], env={**os.environ, **flags}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()
    assert "spread: 9 cases agree" in said
    assert "tpu: 3 kernels in each of 3 programs" in said or "tpu: no libtpu" in said


def test_a_model_attends_as_its_spec_says(monkeypatch):
    """Also a function of one's own, and in training and evaluation the same: both go through `Model.apply`."""
    from cpt.models.base import build
    from cpt.models.spec import ModelSpec

    mine = sys.modules[__name__]
    monkeypatch.setattr(mine, "calls", calls := [], raising=False)
    spec = ModelSpec(layers=1, width=16, heads=2, vocab_size=32, context=16, attention=f"{__name__}:recorded")
    model = build(spec)
    tokens = jnp.zeros((1, 8), jnp.int32)
    params = model.init(jax.random.key(0))
    ours = model.apply(params, tokens)
    assert len(calls) == 1
    np.testing.assert_allclose(
        ours, build(ModelSpec(**{**vars(spec), "attention": "reference"})).apply(params, tokens), atol=1e-6
    )
    assert len(calls) == 1


def recorded(q, k, v, segments):
    """A backend of one's own."""
    sys.modules[__name__].calls.append(q.shape)
    return reference(q, k, v, segments)

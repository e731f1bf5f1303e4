"""The Llama family against transformers: golden numbers without torch, and the library itself where it is installed."""

import jax
import jax.numpy as jnp
import llama_cases as cases
import numpy as np
import pytest

from cpt.models import convert
from cpt.models.base import build
from cpt.objectives.cross_entropy import cross_entropy

GOLDEN = cases.golden()


def ours(spec, params):
    """Logits of the tokens of the cases, and the gradient of their mean loss."""
    model, tokens = build(spec), jnp.asarray(cases.TOKENS)

    def loss(params):
        hidden = model.apply(params, tokens)
        return cross_entropy(hidden[:, :-1], model.head(params), tokens[:, 1:]).mean(), hidden @ model.head(params)

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    return np.asarray(logits), jax.device_get(gradient)


def theirs(folder, spec, gradient):
    """A tree of ours by the names and in the shapes of the files."""
    from safetensors.numpy import load_file

    convert.write(folder, spec, gradient)
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize("name", cases.CASES)
def test_logits_are_those_of_the_golden_file(tmp_path, name):
    case = GOLDEN[name]
    spec, params = convert.read(cases.write_folder(tmp_path / "in", name, case["shapes"]))
    model = build(spec)
    hidden = jax.jit(model.apply)(params, jnp.asarray(cases.TOKENS))
    np.testing.assert_allclose(hidden @ model.head(params), case["logits"], atol=1e-4)


@pytest.mark.parametrize("name", ["qwen2", "olmo2"])
def test_gradients_are_those_of_the_golden_file(tmp_path, name):
    case = GOLDEN[name]
    spec, params = convert.read(cases.write_folder(tmp_path / "in", name, case["shapes"]))
    _, gradient = ours(spec, params)
    got = theirs(tmp_path / "gradient", spec, gradient)
    assert got.keys() == case["gradients"].keys()
    for tensor, expected in case["gradients"].items():
        along = (got[tensor].astype(np.float64) * cases.noise(tensor, got[tensor].shape, 1)).sum()
        size = np.linalg.norm(got[tensor].astype(np.float64))
        assert abs(along - expected) < 1e-3 * size, tensor


@pytest.mark.parametrize("name", cases.CASES)
def test_logits_and_gradients_are_those_of_transformers(tmp_path, name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model, shapes = cases.reference(name)
    expected, gradients = cases.computed(model)
    np.testing.assert_array_equal(expected.shape, GOLDEN[name]["logits"].shape)
    model.save_pretrained(tmp_path / "saved")
    spec, params = convert.read(tmp_path / "saved")
    logits, gradient = ours(spec, params)
    got = theirs(tmp_path / "gradient", spec, gradient)
    worst = max(np.linalg.norm(got[n] - g) / np.linalg.norm(g) for n, g in gradients.items())
    print(
        f"{name}: logits to {abs(expected).max():.1f}, off by {abs(logits - expected).max():.1e}; gradients {worst:.1e}"
    )
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert worst < 1e-3
    assert shapes == GOLDEN[name]["shapes"]


@pytest.mark.parametrize("name", cases.CASES)
def test_transformers_loads_what_is_written(tmp_path, name):
    """With the numbers that were read, the logits they had, and nothing missing or left over."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    spec, params = convert.read(cases.write_folder(tmp_path / "in", name, GOLDEN[name]["shapes"]))
    convert.write(tmp_path / "out", spec, params, max_shard_bytes=20_000)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info.values()), info
    with torch.no_grad():
        logits = model.eval()(torch.from_numpy(cases.TOKENS)).logits.numpy()
    np.testing.assert_allclose(logits, GOLDEN[name]["logits"], atol=1e-5)

"""Gradients of GPT-NeoX against transformers: golden numbers without torch, and the library where it is installed."""

import jax
import jax.numpy as jnp
import neox_cases as cases
import numpy as np
import pytest
from llama_cases import TOKENS, noise
from safetensors.numpy import load_file

from cpt.models import convert
from cpt.models.base import build
from cpt.objectives.cross_entropy import cross_entropy

GOLDEN = cases.golden()


def ours(folder, out):
    """Logits, and the gradient of the mean loss by the names and in the shapes of the files."""
    spec, params = convert.read(folder)
    model, tokens = build(spec), jnp.asarray(TOKENS)

    def loss(params):
        hidden = model.apply(params, tokens)
        return cross_entropy(hidden[:, :-1], model.head(params), tokens[:, 1:]).mean(), hidden @ model.head(params)

    gradient, logits = jax.jit(jax.grad(loss, has_aux=True))(params)
    convert.write(out, spec, jax.device_get(gradient))
    return np.asarray(logits), load_file(out / "model.safetensors")


@pytest.mark.parametrize("name", cases.CASES)
def test_logits_and_gradients_are_those_of_the_golden_file(tmp_path, name):
    case = GOLDEN[name]
    logits, got = ours(cases.write_folder(tmp_path / "in", name, case["shapes"]), tmp_path / "gradient")
    np.testing.assert_allclose(logits, case["logits"], atol=1e-4)
    assert got.keys() == case["gradients"].keys()
    for tensor, expected in case["gradients"].items():
        size = np.linalg.norm(got[tensor].astype(np.float64))
        assert size > 1e-3, tensor
        along = (got[tensor].astype(np.float64) * noise(tensor, got[tensor].shape, 1)).sum()
        assert abs(along - expected) < 1e-3 * size, tensor


@pytest.mark.parametrize("name", cases.CASES)
def test_logits_and_gradients_are_those_of_transformers(tmp_path, name):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    model, shapes = cases.reference(name)
    assert shapes == GOLDEN[name]["shapes"]
    expected, gradients = cases.computed(model)
    model.save_pretrained(tmp_path / "saved")
    logits, got = ours(tmp_path / "saved", tmp_path / "gradient")
    worst = max(np.linalg.norm(got[n] - g) / np.linalg.norm(g) for n, g in gradients.items())
    print(f"{name}: logits off by {abs(logits - expected).max():.1e}; gradients {worst:.1e}")
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    assert got.keys() == gradients.keys() and worst < 1e-3

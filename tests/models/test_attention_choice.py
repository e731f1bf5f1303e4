"""Which backend is chosen on which machine, what is said of it, and what is refused in one line."""

from dataclasses import replace

import jax
import pytest

from cpt.config import load
from cpt.errors import ConfigError
from cpt.models import attention
from cpt.models.attention.choice import Choice, Work, choose
from cpt.models.llama_spec import LlamaSpec
from cpt.models.spec import ModelSpec
from cpt.plan import resolve
from cpt.training import sharding
from cpt.training.machine import abstract_batch, make_machine
from cpt.training.sharding import run_attention_line, run_mesh

H200 = Work("gpu", "NVIDIA H200", "bfloat16", heads=16, kv_heads=16, head_dim=64, length=2048, capability="9.0")
A100 = replace(H200, kind="NVIDIA A100-SXM4-80GB", capability="8.0")
V5E = replace(H200, platform="tpu", kind="TPU v5 lite", capability=None)
CPU = replace(H200, platform="cpu", kind="cpu", dtype="float32", capability=None)
MI300 = replace(H200, kind="AMD Instinct MI300X", capability="gfx942")


def agrees(work):
    return ""


def no_trial(work):
    raise AssertionError("nothing speaks for cuDNN here, so nothing is to be tried")


@pytest.mark.parametrize(
    ("work", "trial", "name", "why"),
    [
        (CPU, no_trial, "blocked", "CPU, rows of 2048 tokens"),
        (replace(CPU, packed=True), no_trial, "blocked", "CPU, rows of 2048 tokens, documents apart"),
        (H200, agrees, "cudnn", "NVIDIA H200, rows of 2048 tokens"),
        (replace(H200, packed=True), agrees, "cudnn", "NVIDIA H200, rows of 2048 tokens, documents apart"),
        (replace(H200, platform="cuda", kv_heads=4), agrees, "cudnn", "NVIDIA H200, rows of 2048 tokens"),
        (H200, lambda _: "its dq is 40 % off", "blocked", "not cudnn: its dq is 40 % off"),
        (
            replace(H200, dtype="float32"),
            no_trial,
            "blocked",
            "not cudnn: it computes in bfloat16, and model.compute_dtype is 'float32'",
        ),
        (
            replace(H200, head_dim=60),
            no_trial,
            "blocked",
            "not cudnn: heads of 60 channels, and it takes multiples of 8 up to 256 on NVIDIA H200",
        ),
        (replace(H200, head_dim=256), agrees, "cudnn", "NVIDIA H200, rows of 2048 tokens"),
        (replace(A100, head_dim=128), agrees, "cudnn", "NVIDIA A100-SXM4-80GB, rows of 2048 tokens"),
        (
            replace(A100, head_dim=256),
            no_trial,
            "blocked",
            "not cudnn: heads of 256 channels, and it takes multiples of 8 up to 128 on NVIDIA A100-SXM4-80GB",
        ),
        (
            replace(A100, packed=True),
            no_trial,
            "blocked",
            "not cudnn: it keeps the documents of a row apart from Hopper (9.0) on, and NVIDIA A100-SXM4-80GB is 8.0",
        ),
        (
            replace(H200, packed=True, capability="10.0"),
            agrees,
            "cudnn",
            "NVIDIA H200, rows of 2048 tokens, documents apart",
        ),
        (MI300, no_trial, "blocked", "not cudnn: it is for NVIDIA GPUs, and this is AMD Instinct MI300X"),
        (V5E, no_trial, "splash", "TPU v5 lite, rows of 2048 tokens"),
        (
            replace(V5E, packed=True, dtype="float32"),
            no_trial,
            "splash",
            "TPU v5 lite, rows of 2048 tokens, documents apart",
        ),
        (replace(CPU, pieces=2), no_trial, "reference", "each row is split over 2 devices (mesh.sequence)"),
        (replace(H200, pieces=4), no_trial, "reference", "each row is split over 4 devices (mesh.sequence)"),
        (replace(V5E, pieces=4), no_trial, "reference", "each row is split over 4 devices (mesh.sequence)"),
    ],
)
def test_what_is_chosen_and_why(work, trial, name, why):
    assert choose("auto", work, trial) == Choice(name, why)
    assert Choice(name, why).line() == f"attention: {name} ({why})"


@pytest.mark.parametrize(
    ("asked", "work", "says"),
    [
        ("cudnn", CPU, "it is for NVIDIA GPUs, and this is cpu; choose 'auto' (here: 'blocked')"),
        ("cudnn", MI300, "it is for NVIDIA GPUs, and this is AMD Instinct MI300X; choose 'auto'"),
        ("cudnn", V5E, "this is TPU v5 lite; choose 'auto' (here: 'splash')"),
        ("cudnn", replace(H200, dtype="float32"), "model.compute_dtype is 'float32'; choose 'auto' (here: 'blocked')"),
        ("splash", H200, "it is for TPUs, and this is NVIDIA H200; choose 'auto' (here: 'cudnn')"),
        ("splash", replace(V5E, pieces=2), "split over 2 devices (mesh.sequence); choose 'auto' (here: 'reference')"),
        ("blocked", replace(CPU, pieces=2), "split over 2 devices (mesh.sequence); choose 'auto' (here: 'reference')"),
    ],
)
def test_a_backend_that_cannot_is_refused(asked, work, says):
    with pytest.raises(ConfigError) as refused:
        choose(asked, work, agrees)
    line = str(refused.value)
    assert (
        line.startswith(f"config error: model.attention: '{asked}' cannot be used: ")
        and says in line
        and "\n" not in line
    )


@pytest.mark.parametrize("asked", ["reference", "blocked", "cudnn"])
def test_a_backend_that_can_is_taken_by_its_name(asked):
    assert choose(asked, H200, agrees) == Choice(asked, "as asked, NVIDIA H200, rows of 2048 tokens")


def test_one_that_was_asked_for_is_tried_too():
    with pytest.raises(ConfigError, match="'cudnn' cannot be used: its dv is off; choose 'auto'"):
        choose("cudnn", H200, lambda _: "its dv is off")


@pytest.mark.parametrize("spec", [ModelSpec, LlamaSpec])
def test_names_are_checked_before_anything_starts(spec):
    sizes = dict(layers=1, width=16, heads=2, vocab_size=8, context=8)
    assert spec(**sizes).attention == "auto" and spec(**sizes, attention="math:sqrt").attention == "math:sqrt"
    with pytest.raises(ConfigError, match=r"model\.attention: no 'cuddn'; did you mean 'cudnn'\? .*auto, reference"):
        spec(**sizes, attention="cuddn")
    with pytest.raises(ConfigError, match=r"model\.attention: cannot import 'nowhere\.at_all:mine'"):
        spec(**sizes, attention="nowhere.at_all:mine")


def test_what_the_launch_says_is_what_the_step_does(toy_config, monkeypatch):
    """The line and the model ask for the same work: device, dtype, heads, length, documents."""
    toy_config.batch.mask_documents = True
    plan = resolve(load(toy_config))
    asked = []
    monkeypatch.setattr(attention, "chosen", lambda *a: (asked.append(a), choose(*a, agrees))[1])
    monkeypatch.setattr(sharding, "chosen", attention.chosen)
    line = run_attention_line(plan.spec)
    assert line == f"attention: blocked (CPU, rows of {plan.spec.batch.length} tokens, documents apart)"
    said = asked.pop()
    mesh = run_mesh(plan.spec)
    batch = abstract_batch(plan, mesh)
    machine = make_machine(plan, mesh)
    jax.eval_shape(machine.model.on(mesh).apply, machine.abstract.params, batch["tokens_BxL"], batch["segments_BxL"])
    assert asked == [said] * plan.spec.model.layers


def test_a_run_that_asks_for_what_is_not_there_ends_before_it_starts(toy_config):
    toy_config.model.attention = "splash"
    with pytest.raises(ConfigError, match="'splash' cannot be used: it is for TPUs, and this is cpu"):
        run_attention_line(resolve(load(toy_config)).spec)

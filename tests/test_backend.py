"""What JAX is told before it starts."""

import os
import platform
import subprocess
import sys

import pytest

from cpt import backend


def test_what_is_set_already_stays(monkeypatch, tmp_path):
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("TF_CPP_MIN_LOG_LEVEL", "0")
    backend.prepare_backend()
    assert os.environ["TF_CPP_MIN_LOG_LEVEL"] == "0"
    assert os.environ["JAX_COMPILATION_CACHE_DIR"].startswith(str(tmp_path / "cpt" / "jax-"))
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")  # how one turns it off
    backend.prepare_backend()
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == ""
    for name in ("JAX_COMPILATION_CACHE_DIR", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"):
        monkeypatch.setenv(name, os.environ[name])  # so that they are put back


def test_jax_then_keeps_what_it_compiled_there(tmp_path):
    script = (
        "import cpt.backend as b; b.prepare_backend()\n"
        "import jax, jax.numpy as jnp\n"
        "print(jax.jit(lambda x: jnp.sin(x) @ x)(jnp.ones((8, 8)))[0, 0])\n"
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    env |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    assert done.stderr == "" and list((tmp_path / "cpt").glob("jax-*/*"))


def test_a_user_without_a_home_keeps_no_programs(monkeypatch):
    def nowhere():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR", raising=False)
    for name in ("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "TF_CPP_MIN_LOG_LEVEL"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setattr(backend.Path, "home", nowhere)
    backend.prepare_backend()
    assert "JAX_COMPILATION_CACHE_DIR" not in os.environ


# Each call has 8 MB of scratch space: a program that sorts what it was given.
FAULTS = """
import resource, sys
from cpt import backend
print(backend.keep_memory())
import jax, jax.numpy as jnp
sort = jax.jit(lambda x: jnp.sort(x * 2).sum())
x = jnp.ones(2**21)
for _ in range(3):
    sort(x).block_until_ready()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(5):
    sort(x).block_until_ready()
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_scratch_space_is_kept_from_call_to_call():
    def run(**more: str) -> tuple[str, float]:
        env = {k: v for k, v in os.environ.items() if not k.startswith(("MALLOC_", "GLIBC_"))}
        env |= {"JAX_PLATFORMS": "cpu", **more}
        done = subprocess.run([sys.executable, "-c", FAULTS], env=env, capture_output=True, text=True, check=True)
        kept, faults = done.stdout.split()
        return kept, float(faults)

    (not_kept, many), (kept, few) = run(MALLOC_MMAP_THRESHOLD_="131072"), run()
    assert (not_kept, kept) == ("False", "True")
    assert few < many / 3 and many > 2**21 * 4 / 4096 / 2


@pytest.mark.parametrize(
    "named, there, cpu",
    [
        ("cpu", ["nvidia0"], True),
        ("cuda,cpu", [], False),
        (None, [], True),
        (None, ["nvidia0"], False),
        (None, ["accel0"], False),
        (None, ["null", "nvidiactl"], True),
    ],
)
def test_where_programs_will_run(monkeypatch, tmp_path, named, there, cpu):
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    if named:
        monkeypatch.setenv("JAX_PLATFORMS", named)
    for name in there:
        (tmp_path / name).touch()
    assert backend.on_cpu(tmp_path) == cpu

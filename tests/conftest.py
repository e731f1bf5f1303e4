"""Shared by all tests: no colour, and a compile cache so that equal programs compile once per session."""

import atexit
import copy
import os
import shutil
import tempfile
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes depends on what else the machine does.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# Tests wait for the compiler more than for what it compiled: its older code generators, in one thread for each of the
# suite's processes, take 0.6 of its time. And on a busy machine one of several simulated devices may come late to a
# collective, for which XLA gives up after 40 seconds.
QUICK = (
    "--xla_backend_optimization_level=0",
    "--xla_cpu_use_fusion_emitters=false",
    "--xla_cpu_parallel_codegen_split_count=1",
    "--xla_cpu_collective_call_terminate_timeout_seconds=300",
)
os.environ.setdefault("XLA_FLAGS", " ".join(QUICK))
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    # Of this session only: compiled code from another machine may not run here, and loading it logs an error.
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="cpt-tests-xla-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("COLUMNS", "200")


@pytest.fixture(scope="session")
def toy_root(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("toy")


@pytest.fixture
def toy_config(toy_root):
    """The toy recipe as a `ConfigDict` that a test may edit."""
    import toy

    return copy.deepcopy(toy.get_config(str(toy_root)))


@pytest.fixture
def toy_plan(toy_config):
    from cpt.config import load
    from cpt.plan import resolve

    return resolve(load(toy_config))

"""Makes the generator of synthetic runs importable and offers one finished run."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))


@pytest.fixture
def finished_run(tmp_path: Path) -> Path:
    from synthetic_run import write_run

    return write_run(tmp_path / "demo-3f9c2a71")

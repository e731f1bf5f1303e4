"""Safetensors files: what is written is what the library reads, whatever its sizes, with and without the file cache."""

import errno
import json
import os

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.numpy import load_file

from cpt import tensors
from cpt.tensors import CODES, Output, Tensor, places, write_file


def given_as(arrays):
    return [Tensor(name, a.dtype, a.shape, lambda a=a: a) for name, a in arrays.items()]


def some(dtype, *shape):
    return np.random.default_rng(0).integers(0, 2, shape).astype(dtype)


def test_the_library_reads_every_dtype(tmp_path):
    arrays = {code: some(dtype, 3, 5) for dtype, code in CODES.items() if code != "BF16"}
    arrays |= {"scalar": np.array(2.5, np.float32), "empty": np.zeros((0, 4), np.float32)}
    size = write_file(tmp_path / "a", given_as(arrays), {"format": "pt"})
    assert size == sum(a.nbytes for a in arrays.values())
    there = load_file(tmp_path / "a")
    assert there.keys() == arrays.keys()
    for name, array in arrays.items():
        assert there[name].dtype == array.dtype
        np.testing.assert_array_equal(there[name], array)
    with safe_open(tmp_path / "a", "np") as file:
        assert file.metadata() == {"format": "pt"}


def test_places_are_where_the_numbers_are(tmp_path):
    arrays = {"a": some(np.float32, 7), "b": some(ml_dtypes.bfloat16, 2, 3), "c": np.array(7, np.int32)}
    write_file(tmp_path / "a", given_as(arrays))
    for name, place in places(tmp_path / "a").items():
        assert (place.dtype, place.shape) == (arrays[name].dtype, arrays[name].shape)
        whole = place.rows(0, place.shape[0] if place.shape else 1)
        np.testing.assert_array_equal(whole if place.shape else whole[0], arrays[name])
        assert np.array_equal(place.rows(1, 2), arrays[name][1:2]) if place.shape else True


@settings(max_examples=60, deadline=None)
@given(
    pieces=st.lists(st.integers(0, 3 * 8192), max_size=8),
    edge=st.integers(-2, 2),
    cached=st.booleans(),
    at_most=st.sampled_from([1, 4096, 5000, 2**30]),
)
def test_a_file_holds_what_was_written_to_its_last_byte(tmp_path_factory, pieces, edge, cached, at_most):
    """Past the cache whole blocks are written and cut; a disk may also take less at a time than it is given."""
    pieces = [*pieces, max(0, -sum(pieces) % 4096 + edge)]  # ends near the end of a block
    path, rng = tmp_path_factory.mktemp("out") / "f", np.random.default_rng(1)
    chunks = [rng.integers(0, 256, n).astype(np.uint8).tobytes() for n in pieces]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tensors, "PIECE", 8192)
        patch.setattr(tensors, "_of_thread", type("Fresh", (), {})())
        if cached:
            patch.delattr(os, "O_DIRECT", raising=False)
        write = os.write
        patch.setattr(os, "write", lambda fd, data: write(fd, data[:at_most]))
        with Output(path) as out:
            for chunk in chunks:
                out.write(chunk)
    assert path.read_bytes() == b"".join(chunks)


def supports_direct(folder):
    try:
        os.close(os.open(folder / "probe", os.O_WRONLY | os.O_CREAT | os.O_DIRECT))
    except (OSError, AttributeError):
        return False
    return True


def test_a_file_system_that_refuses_when_it_is_written_to_is_written_through_the_cache(tmp_path, monkeypatch):
    """Some take the flag and refuse the first write."""
    if not supports_direct(tmp_path):
        pytest.skip("this file system takes no such flag")
    write, refused = os.write, []

    def refusing(fd, data):
        import fcntl

        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            refused.append(len(data))
            raise OSError(errno.EINVAL, "Invalid argument")
        return write(fd, data)

    monkeypatch.setattr(os, "write", refusing)
    write_file(tmp_path / "a", given_as({"a": np.arange(5000.0)}))
    monkeypatch.undo()
    np.testing.assert_array_equal(load_file(tmp_path / "a")["a"], np.arange(5000.0))
    assert refused  # or the file system did not even take the flag, and this shows nothing


def test_a_file_that_shrinks_while_it_is_read_is_an_error(tmp_path):
    """A map would kill the process."""
    write_file(tmp_path / "a", given_as({"a": np.arange(5000.0)}))
    place = places(tmp_path / "a")["a"]
    os.truncate(tmp_path / "a", 9000)
    assert place.rows(0, 100)[-1] == 99.0
    with pytest.raises(ValueError, match="ends before"):
        place.rows(0, 5000)


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    def full(fd, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "a", given_as({"a": np.arange(5.0)}))


DAMAGE = {
    "cut in its numbers": lambda raw: raw[:-1],
    "cut in its header": lambda raw: raw[:20],
    "longer": lambda raw: raw + bytes(8),
    "empty": lambda raw: b"",
    "garbage": lambda raw: bytes(len(raw)),
    "a list": lambda raw: (2).to_bytes(8, "little") + b"[]",
    "no JSON": lambda raw: (2).to_bytes(8, "little") + b"{x",
    "another dtype": lambda raw: raw.replace(b'"F32"', b'"F64"'),
    "no such dtype": lambda raw: raw.replace(b'"F32"', b'"X32"'),
    "another shape": lambda raw: raw.replace(b"[6]", b"[5]"),
    "lies elsewhere": lambda raw: raw.replace(b"[0,24]", b"[8,32]"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_what_is_no_whole_file_is_an_error(tmp_path, name):
    write_file(tmp_path / "a", given_as({"a": np.arange(6, dtype=np.float32)}))
    raw = (tmp_path / "a").read_bytes()
    assert places(tmp_path / "a")["a"].shape == (6,) and json.loads(raw[8:].split(b"}}")[0] + b"}}")
    damaged = DAMAGE[name](raw)
    assert damaged != raw
    (tmp_path / "a").write_bytes(damaged)
    with pytest.raises(ValueError):
        places(tmp_path / "a")

"""The token files of Megatron-LM and GPT-NeoX: `.bin` holds the ids of all documents, `.idx` where each begins.

`.bin` is the ids one after the other, without a header. `.idx`, little endian like it:

    9 bytes    magic `MMIDIDX\\0\\0`
    uint64     version, 1
    uint8      code of the dtype in `.bin`
    uint64     n, number of sequences
    uint64     m, length of the document index
    int32[n]   tokens of each sequence
    int64[n]   byte offset of each sequence in `.bin`
    int64[m]   sequence numbers at which documents begin, and n

A large `.bin` may be cut by bytes into `prefix-00000-of-00020.bin`, ..., as Pythia's pre-shuffled Pile is.
"""

from __future__ import annotations

import glob
import os
import re
import struct
from array import array
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType

import numpy as np

from cpt.data.ids import IdFile
from cpt.errors import DataError

MAGIC = b"MMIDIDX\0\0"
OLD_MAGIC = b"TNTIDX\0\0"
HEADER = struct.Struct("<9sQBQQ")
# float32 and float64 (codes 6 and 7) exist in the format, but not as token ids.
DTYPES = {1: np.uint8, 2: np.int8, 3: np.int16, 4: np.int32, 5: np.int64, 8: np.uint16}
LONGEST = 2**31 - 1  # sizes are int32


@dataclass(frozen=True, eq=False)
class TokenFiles:
    """An opened pair, read-only; the index is memory-mapped.

    Attributes:
      tokens: all ids; a slice of it is an array.
      sizes: tokens of each sequence, int32 `[n]`.
      pointers: byte offset of each sequence, int64 `[n]`.
      documents: sequence numbers of the document boundaries, int64 `[m]`, first 0 and last n.
    """

    tokens: IdFile
    sizes: np.ndarray
    pointers: np.ndarray
    documents: np.ndarray

    @property
    def n_documents(self) -> int:
        return len(self.documents) - 1

    @cached_property
    def starts(self) -> np.ndarray:
        """First token of each document, int64 `[n_documents]`."""
        first = np.asarray(self.documents[:-1])
        # Empty documents may lie at the end, where there is no sequence any more.
        return np.append(self.pointers, self.tokens.n_bytes)[first] // self.tokens.dtype.itemsize


def token_dtype(vocab_size: int) -> np.dtype:
    """The dtype that the ids of a vocabulary are stored in, by Megatron's usual choice: uint16 if it holds them."""
    return np.dtype("<u2" if vocab_size <= 65536 else "<i4")


def paths(prefix: str | Path) -> tuple[Path, Path]:
    """The `.bin` and the `.idx` of a prefix (which may hold dots)."""
    return Path(f"{prefix}.bin"), Path(f"{prefix}.idx")


def bin_paths(prefix: str | Path) -> list[Path]:
    """`prefix.bin`, or the pieces it was cut into, in order.

    Raises:
      DataError: pieces are missing.
    """
    whole = paths(prefix)[0]
    if whole.is_file():
        return [whole]
    pieces: dict[int, Path] = {}
    count = 0
    for path in whole.parent.glob(f"{glob.escape(whole.stem)}-*.bin"):
        if m := re.fullmatch(re.escape(whole.stem) + r"-(\d+)-of-(\d+)", path.stem):
            pieces[int(m[1])], count = path, max(count, int(m[2]))
    if not pieces:
        return [whole]
    # `of` is the number of pieces or, as in Pythia's files, the number of the last one; the sizes tell which.
    for i in range(0 if 0 in pieces else 1, max(count, max(pieces) + 1)):
        if i not in pieces:
            raise DataError(f"{whole}: its piece {i} of {count} is missing beside the others; copy it again")
    return [pieces[i] for i in sorted(pieces)]


def open_pair(prefix: str | Path) -> TokenFiles:
    """Open `prefix.bin` (or the pieces it was cut into) and `prefix.idx`.

    Raises:
      DataError: a file is missing, of another format, cut off, too long, or the two do not fit each other.
    """
    idx_path, bins = paths(prefix)[1], bin_paths(prefix)
    for path in (*bins, idx_path):
        if not path.is_file():
            raise DataError(f"{path}: no such file; a token store is a .bin and an .idx beside it")
    code, n, m = _read_header(idx_path)
    # The three arrays follow each other unaligned, which NumPy views allow.
    mapped = _memory_map(idx_path, np.dtype(np.uint8))
    ends = np.cumsum([HEADER.size, 4 * n, 8 * n, 8 * m])
    if len(mapped) != ends[-1]:
        raise DataError(f"{idx_path}: {len(mapped):,} bytes, but its header says {ends[-1]:,}; copy it again")
    sizes, pointers, documents = (
        mapped[start:end].view(dtype) for start, end, dtype in zip(ends, ends[1:], ("<i4", "<i8", "<i8"), strict=False)
    )
    dtype = np.dtype(DTYPES[code]).newbyteorder("<")
    _check_index(idx_path, sizes, pointers, documents, dtype.itemsize)
    tokens = IdFile(bins, dtype)
    expected = int(sizes.sum(dtype=np.int64)) * dtype.itemsize
    if (found := tokens.n_bytes) != expected:
        how = f"{abs(found - expected):,} bytes {'shorter' if found < expected else 'longer'}"
        raise DataError(f"{bins[0]}: {how} than {idx_path.name} says; copy or prepare both again")
    return TokenFiles(tokens, sizes, pointers, documents)


def _read_header(path: Path) -> tuple[int, int, int]:
    """dtype code, number of sequences, length of the document index."""
    with path.open("rb") as f:
        header = f.read(HEADER.size)
    if header.startswith(OLD_MAGIC):
        raise DataError(f"{path}: the old TNTIDX format; convert it to MMIDIDX (Megatron's dataset_impl='mmap')")
    if not header.startswith(MAGIC):
        raise DataError(f"{path}: not a Megatron index (it begins with {header[:9]!r}, not {MAGIC!r})")
    if len(header) < HEADER.size:
        raise DataError(f"{path}: cut off after {len(header)} bytes, within its header; copy it again")
    _, version, code, n, m = HEADER.unpack(header)
    if version != 1:
        raise DataError(f"{path}: version {version} of the format, only 1 is known")
    if code not in DTYPES:
        raise DataError(f"{path}: dtype code {code} is not one of integer ids ({', '.join(map(str, DTYPES))})")
    return code, n, m


def _check_index(path: Path, sizes: np.ndarray, pointers: np.ndarray, documents: np.ndarray, itemsize: int) -> None:
    """What a damaged index gets wrong, without reading all of a large one into memory at once."""
    n = len(sizes)
    good = len(documents) > 0 and documents[0] == 0 and documents[-1] == n
    block = 1 << 20
    # Boundaries that only ever go on lie between the first, 0, and the last, n.
    good &= all(bool((np.diff(documents[i : i + block + 1]) >= 0).all()) for i in range(0, len(documents), block))
    start = 0
    for i in range(0, n, block):
        ends = start + np.cumsum(sizes[i : i + block], dtype=np.int64) * itemsize
        good &= int(sizes[i : i + block].min()) >= 0
        good &= bool(np.array_equal(pointers[i : i + block], np.concatenate([[start], ends[:-1]])))
        start = int(ends[-1])
    if not good:
        raise DataError(f"{path}: its sizes, offsets and document boundaries contradict each other; copy it again")


def _memory_map(path: Path, dtype: np.dtype) -> np.ndarray:
    if path.stat().st_size == 0:  # which cannot be mapped
        return np.zeros(0, dtype)
    return np.memmap(path, dtype, mode="r")


class Writer:
    """Writes a pair document by document: `with Writer(prefix, dtype) as w: w.add(ids)`.

    Everything goes to temporary files beside the target, which are synced and renamed on leaving the block, so a pair
    is there whole or not at all. Leaving it by an exception removes them.
    """

    def __init__(self, prefix: str | Path, dtype: np.dtype):
        """`dtype` of the stored ids, see `token_dtype`."""
        self._dtype = np.dtype(dtype).newbyteorder("<")
        self._targets = paths(prefix)
        self._temporaries = [Path(f"{t}.{os.getpid()}.tmp") for t in self._targets]
        self._sizes = array("i")
        self.n_tokens = 0
        self.max_id = -1

    def __enter__(self) -> Writer:
        self._bin = self._temporaries[0].open("wb")
        return self

    @property
    def n_documents(self) -> int:
        return len(self._sizes)

    def add(self, ids: np.ndarray) -> None:
        """Append one document.

        Args:
          ids: 1-D, any integer dtype.

        Raises:
          DataError: an id that the dtype does not hold, more than 2^31 - 1 tokens.
        """
        self.max_id = max(self.max_id, checked(ids, self._dtype, self._targets[0]))
        self._bin.write(np.ascontiguousarray(ids, self._dtype).data)
        self._sizes.append(len(ids))
        self.n_tokens += len(ids)

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        try:
            if kind is None:
                self._finish()
        finally:
            try:
                self._bin.close()  # writes what is left, which fails again on a full disk
            finally:
                for path in self._temporaries:
                    path.unlink(missing_ok=True)

    def _finish(self) -> None:
        sync(self._bin)
        write_index(self._temporaries[1], np.array(self._sizes, np.int32), self._dtype)
        for temporary, target in zip(self._temporaries, self._targets, strict=True):
            os.replace(temporary, target)


def checked(ids: np.ndarray, dtype: np.dtype, where: Path) -> int:
    """The largest id of a document (-1 if it is empty).

    Raises:
      DataError: an id that `dtype` does not hold, more than 2^31 - 1 tokens.
    """
    if len(ids) > LONGEST:
        raise DataError(f"{where}: a document of {len(ids):,} tokens; the format allows {LONGEST:,}")
    if not len(ids):
        return -1
    low, high = int(ids.min()), int(ids.max())
    if low < 0 or high > np.iinfo(dtype).max:
        raise DataError(f"{where}: token id {low if low < 0 else high} does not fit {dtype}")
    return high


def write_index(path: Path, sizes: np.ndarray, dtype: np.dtype) -> None:
    """Write the `.idx` of documents of these sizes (one sequence each), and sync it."""
    dtype, n = np.dtype(dtype), len(sizes)
    code = {np.dtype(v): k for k, v in DTYPES.items()}[dtype.newbyteorder("=")]
    ends = np.cumsum(sizes, dtype=np.int64) * dtype.itemsize
    with path.open("wb") as f:
        f.write(HEADER.pack(MAGIC, 1, code, n, n + 1))
        f.write(sizes.astype("<i4").tobytes())
        f.write(np.concatenate([[0], ends])[:n].astype("<i8").tobytes())
        f.write(np.arange(n + 1, dtype="<i8").tobytes())
        sync(f)


def sync(f) -> None:
    """Bring what was written to a file onto the disk."""
    f.flush()
    os.fsync(f.fileno())

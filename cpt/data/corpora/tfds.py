"""TFDS data sets, by name or by folder, read at random without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.corpora._base import Bad, Document, Fields, Item, Part, document_from
from cpt.errors import DataError

RECORDS = 10_000  # in a part; what was done of a part is skipped over when work goes on
_TOGETHER = 64  # read at a time, which is faster


def tfds(path: str | None, fields: Fields) -> list[Part]:
    """The examples of a data set, in its order.

    Args:
      path: `name`, `name/config:1.0.0`, or the folder of a prepared one; `#split` after it names the split, in TFDS's
        own terms (`#train[:10%]`), by default `#train`.
      fields: features; `meta.text` is the feature `text` of the feature `meta`. An integer tensor is token ids.

    Raises:
      DataError: no such data set or split, or one that is not stored as ArrayRecord.
    """
    if not path:
        raise DataError("this corpus reads a TFDS data set: give its name or its folder as the path")
    name, _, split = path.partition("#")
    source, count = _open(name, split or "train")
    return [
        Part(f"{path}[{i}:{i + RECORDS}]", partial(_items, source, range(i, min(i + RECORDS, count)), path, fields))
        for i in range(0, count, RECORDS)
    ]


def _items(source: Any, numbers: range, path: str, fields: Fields) -> Iterator[Item]:
    from google.protobuf.message import DecodeError

    done = 0
    try:
        while done < len(numbers):
            at = numbers[done : done + _TOGETHER]
            for i, record in zip(at, source.__getitems__(list(at)), strict=True):
                yield _document(record, fields, f"{path}[{i}]")
            done += len(at)
    except (OSError, RuntimeError, ValueError, KeyError, DecodeError) as e:
        why = f"damaged file ({str(e) or type(e).__name__}); copy or prepare the data set again"
        yield Bad("damaged file", f"{path}[{numbers[done]}]", " ".join(why.split()), ends_part=True)


def _document(record: Any, fields: Fields, where: str) -> Document | Bad:
    try:
        return document_from(_plain(_wanted(record, fields)), fields, where)
    except UnicodeDecodeError as e:
        return Bad("not UTF-8", where, f"not UTF-8 (byte {e.start:,}); prepare the data set again with valid text")


def _wanted(record: Any, fields: Fields) -> Any:
    """Only the top-level features that hold the fields: the bytes of others may be no text."""
    tops = {f.split(".")[0] for f in fields if f}
    return {k: v if k in tops else None for k, v in record.items()} if isinstance(record, Mapping) else record


def _plain(value: Any) -> Any:
    """TFDS gives text as bytes and scalars as arrays."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if isinstance(value, np.generic) else value


def _open(name: str, split: str) -> tuple[Any, int]:
    """The examples of a split, and how many they are."""
    os.environ.setdefault("TFDS_DISABLE_TENSORFLOW_WARNING", "1")
    import tensorflow_datasets

    folder = Path(name).expanduser()
    try:
        if (folder / "dataset_info.json").is_file():
            builder = tensorflow_datasets.builder_from_directory(folder)
        else:
            builder = tensorflow_datasets.builder(name)
        source = builder.as_data_source(split)
        return source, len(source)
    except Exception as e:  # TFDS raises whatever its parts do
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise DataError(
            f"{name}#{split}: no TFDS data set that can be read here ({first[:200]}); a folder must hold "
            "dataset_info.json and ArrayRecord files, a name must have been prepared with file_format=array_record"
        ) from e

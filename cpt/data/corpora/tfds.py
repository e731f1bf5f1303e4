"""TFDS data sets, by name or by folder, read at random without TensorFlow."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from cpt.data.corpora._base import Fields, Item, Part, document_from
from cpt.errors import DataError

RECORDS = 10_000  # in a part; what was done of a part is skipped over when work goes on


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
    source = _open(name, split or "train")
    starts = range(0, len(source), RECORDS)
    return [
        Part(f"{path}[{i}:{i + RECORDS}]", partial(_items, source, i, min(i + RECORDS, len(source)), path, fields))
        for i in starts
    ]


def _items(source: Any, first: int, last: int, path: str, fields: Fields) -> Iterator[Item]:
    for i in range(first, last):
        yield document_from(_plain(source[i]), fields, f"{path}[{i}]")


def _plain(value: Any) -> Any:
    """TFDS gives text as bytes and scalars as arrays."""
    if isinstance(value, Mapping):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value.item()
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return value.item() if isinstance(value, np.generic) else value


def _open(name: str, split: str) -> Any:
    os.environ.setdefault("TFDS_DISABLE_TENSORFLOW_WARNING", "1")
    import tensorflow_datasets

    folder = Path(name).expanduser()
    try:
        if (folder / "dataset_info.json").is_file():
            builder = tensorflow_datasets.builder_from_directory(folder)
        else:
            builder = tensorflow_datasets.builder(name)
        return builder.as_data_source(split)
    except Exception as e:  # TFDS raises whatever its parts do
        first = (str(e).strip().splitlines() or [type(e).__name__])[0]
        raise DataError(
            f"{name}#{split}: no TFDS data set that can be read here ({first[:200]}); a folder must hold "
            "dataset_info.json and ArrayRecord files, a name must have been prepared with file_format=array_record"
        ) from e

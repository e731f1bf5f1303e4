"""Parquet files (`.parquet`): the text in one column, nested or not; read in small batches of the columns needed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from cpt.data.corpora._base import Bad, Fields, Item, Part, document_from
from cpt.data.corpora._files import InputFile, existing

SUFFIXES = (".parquet",)
_ROWS = 256  # at a time: documents may be long
_BYTES = 1 << 20  # of a column, read at a time


def parquet(path: str | None, fields: Fields) -> list[Part]:
    """The documents of the files at `path`, in the order of file names and rows.

    Args:
      path: a file or glob (any suffix), or a folder, of which the `SUFFIXES` are read; several with commas between.
      fields: columns; `meta.text` is the field `text` of the column `meta`. A column of integer lists is token ids.

    Raises:
      DataError: nothing there. A row without text, or a file that cannot be read, is a `Bad` item.
    """
    return [Part(file.name, partial(_items, file, fields), file.size) for file in existing(path, SUFFIXES)]


def _items(file: InputFile, fields: Fields) -> Iterator[Item]:
    import pyarrow
    from pyarrow import parquet as pq

    row = 0
    try:
        # Buffered ahead, a whole row group would be held in memory, which may be gigabytes.
        with file.open_raw() as raw, pq.ParquetFile(raw, pre_buffer=False, buffer_size=_BYTES) as table:
            wanted = [f for f in (fields.text, fields.domain) if f]
            there = {c.path for c in (table.schema.column(i) for i in range(len(table.schema.names)))}
            for name in wanted:
                if not any(c == name or c.startswith(f"{name}.") for c in there):
                    has = ", ".join(sorted(there)[:8])
                    yield Bad("no such field", file.name, f"no column '{name}' (it has {has})", ends_part=True)
                    return
            for batch in table.iter_batches(batch_size=_ROWS, columns=wanted):
                for record in _records(batch):
                    row += 1
                    where = f"{file.name}:{row}"
                    yield document_from(record, fields, where) if record is not None else _not_utf8(where)
    except (OSError, pyarrow.ArrowException) as e:
        yield file.damaged(e, f":{row + 1}")


def _records(batch: Any) -> Iterator[dict[str, Any] | None]:
    """The rows of a batch; `None` for one whose text is not UTF-8, which pyarrow finds out only here."""
    try:
        yield from batch.to_pylist()
        return
    except UnicodeDecodeError:
        pass
    for i in range(batch.num_rows):
        try:
            (record,) = batch.slice(i, 1).to_pylist()
        except UnicodeDecodeError:
            record = None
        yield record


def _not_utf8(where: str) -> Bad:
    return Bad("not UTF-8", where, "not UTF-8; write the table again with valid strings")

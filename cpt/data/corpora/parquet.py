"""Parquet files (`.parquet`): the text in one column, nested or not; read in small batches of the columns needed."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cpt.data.corpora._base import Bad, Fields, Item, Part, document_from
from cpt.data.corpora._files import InputFile, existing

SUFFIXES = (".parquet",)
_ROWS = 256  # at a time: documents may be long


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
        with file.open_raw() as raw, pq.ParquetFile(raw) as table:
            wanted = [f for f in (fields.text, fields.domain) if f]
            there = {c.path for c in (table.schema.column(i) for i in range(len(table.schema.names)))}
            for name in wanted:
                if not any(c == name or c.startswith(f"{name}.") for c in there):
                    has = ", ".join(sorted(there)[:8])
                    yield Bad("no such field", file.name, f"no column '{name}' (it has {has})", ends_part=True)
                    return
            for batch in table.iter_batches(batch_size=_ROWS, columns=wanted):
                for record in batch.to_pylist():
                    row += 1
                    yield document_from(record, fields, f"{file.name}:{row}")
    except (OSError, pyarrow.ArrowException) as e:
        yield file.damaged(e, f":{row + 1}")

"""ArrayRecord files (`.array_record`): a document per record, as UTF-8 text or as bare token ids."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import numpy as np

from cpt.data.corpora._base import Bad, Document, Fields, Item, Part
from cpt.data.corpora._files import InputFile, existing, local_only
from cpt.errors import DataError, nearest

SUFFIXES = (".array_record", ".arecord")
IDS = ("uint16", "int32", "uint32", "int64")
_RECORDS = 64  # read at a time


def array_record(path: str | None, fields: Fields) -> list[Part]:
    """The records of the files at `path`, in the order of file names.

    Args:
      path: a file or glob (any suffix), or a folder, of which the `SUFFIXES` are read; several with commas between.
      fields: records have none. With `text=uint16` (or another of `IDS`) they are token ids of that type, little
        endian; with `text=text`, as it is when nothing is said, they are text.

    Raises:
      DataError: nothing there, another text field, a domain field, a path that is not local.
    """
    if fields.domain:
        raise DataError(f"{path}: records of ArrayRecord have no field '{fields.domain}'; leave domain_field out")
    # Ids of small types are often valid text, so that a slip in the name of one would go unnoticed.
    if fields.text not in ("text", *IDS):
        has = f"text_field is text, or the type of token ids: {', '.join(IDS)}"
        raise DataError(
            f"{path}: records of ArrayRecord have no field '{fields.text}'{nearest(fields.text, IDS)}; {has}"
        )
    files = local_only(existing(path, SUFFIXES), "ArrayRecord files")
    return [Part(file.name, partial(_items, file, fields), file.size) for file in files]


def _items(file: InputFile, fields: Fields) -> Iterator[Item]:
    from array_record.python.array_record_module import ArrayRecordReader

    done = 0
    try:
        reader = ArrayRecordReader(file.name)
        count = reader.num_records()
        while done < count:
            records = reader.read(list(range(done, min(done + _RECORDS, count))))
            for i, record in enumerate(records, done + 1):
                yield _document(record, fields.text, f"{file.name}:{i}")
            done += len(records)
        reader.close()  # tells what was wrong with the file, too
    except (RuntimeError, ValueError, OSError) as e:
        yield file.damaged(e, f":{done + 1}")


def _document(record: bytes, kind: str, where: str) -> Document | Bad:
    if kind in IDS:
        dtype = np.dtype(kind).newbyteorder("<")
        if len(record) % dtype.itemsize:
            return Bad("not token ids", where, f"{len(record)} bytes are no ids of {kind}; name another text_field")
        return Document(ids=np.frombuffer(record, dtype))
    try:
        return Document(record.decode("utf-8-sig"))
    except UnicodeDecodeError as e:
        why = f"not UTF-8 (byte {e.start:,}); of token ids name the type: text_field=uint16"
        return Bad("not UTF-8", where, why)

"""JSON lines (`.jsonl`, `.ndjson`, also compressed): one object per line, the text in one of its fields."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

from cpt.data.corpora._base import Bad, Document, Fields, Item, Part, document_from
from cpt.data.corpora._files import InputFile, existing
from cpt.data.corpora._streams import COMPRESSED, DAMAGED

SUFFIXES = tuple(f".{kind}{c}" for kind in ("jsonl", "ndjson") for c in ("", *COMPRESSED))
LONGEST = 1 << 30  # bytes of a line; what is longer is no record, and is not held in memory
_SKIPPED = 1 << 20  # bytes at a time


def jsonl(path: str | None, fields: Fields) -> list[Part]:
    """The documents of the files at `path`, in the order of file names and lines. Blank lines are skipped.

    Args:
      path: a file or glob (any suffix), or a folder, of which the `SUFFIXES` are read; several with commas between.
      fields: `text` and `domain`; `meta.text` is the field `text` of the object `meta`.

    Raises:
      DataError: nothing there. A line that holds no document is a `Bad` item with file and line number.
    """
    return [Part(file.name, partial(_items, file, fields), file.size) for file in existing(path, SUFFIXES)]


class Line(NamedTuple):
    """A line that is not parsed yet."""

    content: bytes
    file: str
    number: int
    fields: Fields

    @property
    def characters(self) -> int:
        return len(self.content)

    def document(self) -> Document | Bad:
        """The document of the line."""
        where = f"{self.file}:{self.number}"
        try:
            record = json.loads(self.content.decode("utf-8-sig"))
        except UnicodeDecodeError as e:
            why = f"not UTF-8 (byte {e.start:,} of the line); convert the file with iconv"
            return Bad("not UTF-8", where, why)
        except (ValueError, RecursionError) as e:
            return Bad("invalid JSON", where, f"invalid JSON ({e}); mend or remove the line")
        return document_from(record, self.fields, where)


def _items(file: InputFile, fields: Fields) -> Iterator[Item]:
    number = 0
    try:
        with file.open() as stream:
            # Bytes, because only `\n` ends a line of JSON lines (text mode would also end it at `\r`).
            while line := stream.readline(LONGEST):
                number += 1
                if len(line) == LONGEST and not line.endswith(b"\n"):
                    why = f"a line of more than {LONGEST:,} bytes; split it into documents"
                    line = b""
                    yield Bad("line too long", f"{file.name}:{number}", why)
                    while (rest := stream.readline(_SKIPPED)) and not rest.endswith(b"\n"):
                        pass
                elif not line.isspace():
                    yield Line(line, file.name, number, fields)
                    line = b""  # else it would be held beside the next one
    except DAMAGED as e:
        yield file.damaged(e, f":{number + 1}")

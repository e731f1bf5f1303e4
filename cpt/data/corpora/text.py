"""Plain UTF-8 text files, one document each: a file, a folder (recursively) or a glob."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from cpt.data.corpora._base import Bad, Document, Fields, Item, Part
from cpt.data.corpora._files import InputFile, existing
from cpt.data.corpora._streams import COMPRESSED, DAMAGED
from cpt.errors import DataError

SUFFIXES = tuple(f".{kind}{c}" for kind in ("txt", "text", "md", "markdown", "rst") for c in ("", *COMPRESSED))


def text(path: str | None, fields: Fields) -> list[Part]:
    """The documents of the files at `path`, in the order of their names. Empty files hold none.

    Args:
      path: a file or glob (any suffix), or a folder, of which the `SUFFIXES` are read; several with commas between.
      fields: plain text has none. With `folder`, the domain of a file is the first folder below the given one (or below
        where the glob begins), and the name of that folder itself for a file that lies right in it.

    Raises:
      DataError: nothing there, or another domain field. A file that cannot be read or is not UTF-8 is a `Bad` item.
    """
    if fields.domain not in (None, "folder"):
        raise DataError(f"{path}: text files have no field '{fields.domain}'; domain_field=folder takes their folders")
    return [Part(file.name, partial(_items, file, fields), file.size) for file in existing(path, SUFFIXES)]


def _items(file: InputFile, fields: Fields) -> Iterator[Item]:
    try:
        with file.open() as stream:
            content = stream.read()
        document = content.decode("utf-8-sig")
    except UnicodeDecodeError as e:
        why = f"not UTF-8 text (byte {e.start:,}); convert it with iconv, or leave it out"
        yield Bad("not UTF-8", file.name, why, ends_part=True)
        return
    except DAMAGED as e:
        yield file.damaged(e)
        return
    yield Document(document, file.first_folder if fields.domain else "")

"""What a reader of raw data gives: documents, in parts that can be opened one by one.

A reader is a function `(path, fields) -> documents`. The simplest is a generator of strings. One that reads files
returns a list of `Part`s instead, one per file, so that work which was stopped goes on in the file where it stopped.
Where making a document out of a record costs time (parsing JSON), a reader yields `Lazy` items: they are made into
documents by the worker process that also tokenises them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol

import numpy as np

from cpt.errors import DataError

# Names that The Pile used before its release, and that some copies still have.
PILE_NAMES = {
    "CommonCrawl": "Pile-CC",
    "Bibliotik": "Books3",
    "USPTO": "USPTO Backgrounds",
    "BookCorpus": "BookCorpus2",
}


class Fields(NamedTuple):
    """Which fields of a record hold the text and the domain; `meta.text` is the field `text` of the object `meta`."""

    text: str = "text"
    domain: str | None = None


class Document(NamedTuple):
    """A document: its text, or the ids of one that is tokenised already (without an end-of-document id)."""

    text: str = ""
    domain: str = ""
    ids: np.ndarray | None = None


class Bad(NamedTuple):
    """A record that holds no usable document, or the rest of a damaged file.

    Attributes:
      kind: what is counted, in a few words that many share ("invalid JSON").
      where: `file:line` or the like.
      why: the rest of the sentence, what to do included.
      ends_part: whether nothing after it in this part can be read.
    """

    kind: str
    where: str
    why: str
    ends_part: bool = False

    def __str__(self) -> str:
        return f"{self.where}: {self.why}"


class Lazy(Protocol):
    """A record that is made into a document later, in another process: pickled, so small and self-contained."""

    @property
    def characters(self) -> int:
        """About how many it holds."""
        ...

    def document(self) -> Document | Bad: ...


Item = str | Document | Bad | Lazy


class Part(NamedTuple):
    """One file (or the like) of a corpus; `open()` starts an iteration over it from its beginning.

    `size` is its bytes on disk, where they are known, and `METER` counts those that were read: that is what tells how
    long the rest takes.
    """

    name: str
    open: Callable[[], Iterator[Item]]
    size: int | None = None


class Meter:
    """Bytes that readers have read from disk, compressed as they lie there."""

    read = 0


METER = Meter()


Reader = Callable[[str | None, Fields], Iterable[Item] | list[Part]]


def parts_of(reader: Reader, path: str | None, fields: Fields) -> list[Part]:
    """The parts of a corpus; a reader without parts is one."""
    found = reader(path, fields)
    if isinstance(found, list) and all(isinstance(part, Part) for part in found):
        return found
    return [Part(path or getattr(reader, "__name__", "corpus"), lambda: iter(reader(path, fields)))]


def document_of(item: Item) -> Document | Bad:
    """What an item of a reader holds."""
    if isinstance(item, Document | Bad):
        return item
    return Document(item) if isinstance(item, str) else item.document()


def texts(parts: Iterable[Part]) -> Iterator[str]:
    """The text of every usable document, for those that need no more (a tokenizer that is trained).

    Raises:
      DataError: a document is tokenised already.
    """
    for part in parts:
        for item in part.open():
            document = document_of(item)
            if isinstance(document, Bad):
                continue
            if document.ids is not None:
                raise DataError(f"{part.name}: holds token ids, no text that a tokenizer could be trained on")
            yield document.text


def document_from(record: Any, fields: Fields, where: str) -> Document | Bad:
    """The document of a record of named fields, nested or not.

    A text field that holds integers is taken as token ids. A domain field called `pile_set_name` takes the four names
    from before the release of The Pile for the ones it has now.
    """
    try:
        text = _field(record, fields.text)
    except KeyError as e:
        why = f"no field '{fields.text}' ({e.args[0]}); set text_field to the one with the text"
        return Bad("no such field", where, why)
    try:
        domain = _field(record, fields.domain) if fields.domain else ""
    except KeyError as e:
        why = f"no field '{fields.domain}' ({e.args[0]}); set domain_field to the one with the domain"
        return Bad("no such field", where, why)
    if not isinstance(domain, str | int):
        why = f"field '{fields.domain}' holds {type(domain).__name__}, not the name of a domain"
        return Bad("not a string", where, why)
    if fields.domain and fields.domain.split(".")[-1] == "pile_set_name":
        domain = PILE_NAMES.get(domain, domain)
    if isinstance(text, list) and all(type(i) is int for i in text):
        try:
            text = np.array(text, np.int64)
        except OverflowError:
            return Bad("not token ids", where, f"field '{fields.text}' holds integers that are too large for token ids")
    if isinstance(text, np.ndarray) and text.ndim == 1 and np.issubdtype(text.dtype, np.integer):
        return Document("", str(domain), text)
    if not isinstance(text, str):
        why = f"field '{fields.text}' holds {type(text).__name__}, not a string"
        return Bad("not a string", where, why)
    return Document(text, str(domain))


def _field(record: Any, name: str) -> Any:
    """The value of a dotted field; KeyError, saying what the record has instead, where there is none."""
    for key in name.split("."):
        if not isinstance(record, Mapping) or key not in record:
            has = (
                f"it has {', '.join(sorted(map(str, record))[:8])}" if isinstance(record, Mapping) else "not an object"
            )
            raise KeyError(has)
        record = record[key]
    return record

"""English prose that every Python carries: the docstrings of its standard library and pydoc's topics (about 2.3 MB)."""

from __future__ import annotations

from collections.abc import Iterator

from cpt.data.corpora._base import Fields
from cpt.data.corpora._files import well_formed
from cpt.data.corpora._stdlib import source_files


def stdlib_prose(path: str | None = None, fields: Fields | None = None) -> Iterator[str]:
    """One document per module, its docstrings in the order of the source, then one per topic of `help()`.

    The modules are read from their files, not imported. Which text it is depends on the Python version only; a
    distribution that leaves out modules leaves out their documents. Neither argument is used.

    Raises:
      DataError: this Python has no source files.
    """
    for file in source_files():
        if file.prose:
            yield file.prose
    for _, topic in sorted(_topics().items()):
        yield well_formed(topic)


def _topics() -> dict[str, str]:
    try:
        from pydoc_data.topics import topics  # data only; some minimal installations have not got it
    except ImportError:
        return {}
    return topics

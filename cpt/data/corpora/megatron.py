"""Token files of Megatron-LM and GPT-NeoX (`.bin` with `.idx`), tokenised already: documents of ids."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from cpt.data.corpora._base import Bad, Document, Fields, Item, Part
from cpt.data.corpora._files import existing, local_only
from cpt.data.megatron import open_pair, paths
from cpt.errors import DataError

DOCUMENTS = 100_000  # in a part


def megatron(path: str | None, fields: Fields) -> list[Part]:
    """The documents of the pairs at `path`, in the order of file names.

    A store made by another tool needs no preparing: a config may name the pair itself. This is for splitting one,
    dropping duplicates or joining many. Ids are given as they are, an end-of-document id at the end included.

    Args:
      path: the prefix of a pair, either file of it, a folder or a glob; several with commas between.
      fields: ids have none.

    Raises:
      DataError: nothing there, a damaged pair, a domain field.
    """
    if fields.domain:
        raise DataError(f"{path}: token ids have no field '{fields.domain}'; leave domain_field out")
    prefixes = [p.strip() for p in (path or "").split(",")]
    given = [str(paths(p)[1]) if paths(p)[1].is_file() else p for p in prefixes]
    files = local_only(existing(",".join(given), (".idx",)), "Megatron pairs")
    parts = []
    for prefix in dict.fromkeys(Path(f.name).with_suffix("") for f in files):
        count = open_pair(prefix).n_documents
        for first in range(0, count, DOCUMENTS):
            last = min(first + DOCUMENTS, count)
            parts.append(Part(f"{prefix}.bin[{first}:{last}]", partial(_items, prefix, first, last)))
    return parts


def _items(prefix: Path, first: int, last: int) -> Iterator[Item]:
    try:
        files = open_pair(prefix)
        ends = np.append(files.starts, len(files.tokens))
        for i in range(first, last):
            yield Document(ids=files.tokens[ends[i] : ends[i + 1]])
    except DataError as e:
        line = str(e).removeprefix(f"{e.room}: ")
        yield Bad("damaged file", str(prefix), line.removeprefix(f"{prefix}.bin: "), ends_part=True)

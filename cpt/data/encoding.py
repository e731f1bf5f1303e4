"""From records to token ids, a batch at a time, here or in worker processes.

What a batch becomes depends on the batch alone, and batches come back in order, so the number of workers changes
nothing but the time.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import re
import signal
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from cpt.data.corpora._base import Bad, Document, Item, document_of
from cpt.data.corpora._files import well_formed
from cpt.data.tokenizers._base import Tokenizer, load
from cpt.errors import ConfigError, DataError

LONG = 1 << 20  # characters that a tokenizer is given at a time: of a token it makes about 100 bytes on the way
_BLANK_BETWEEN_WORDS = re.compile(r"(?<=\S) (?=\S)")


@dataclass(frozen=True)
class Settings:
    """How documents become rows of ids; `max_chars` cuts longer ones at line ends."""

    max_chars: int | None = None

    def __post_init__(self):
        if self.max_chars is not None and self.max_chars < 1:
            raise ConfigError(f"max_chars: {self.max_chars} is out of range (>= 1)")


class Encoded(NamedTuple):
    """A batch of n documents, tokenised.

    Attributes:
      ids: of all documents, each followed by the end-of-document id.
      sizes: int64 `[n]`, ids of each.
      text_bytes: int64 `[n]`, UTF-8 bytes of each.
      domains: `[n]`.
      keys: `[n]` hashes of the content, 16 bytes each.
      bad: records that hold no document.
      empty: documents (or pieces of them) without text.
      records: items that all this came from.
    """

    ids: np.ndarray
    sizes: np.ndarray
    text_bytes: np.ndarray
    domains: list[str]
    keys: list[bytes]
    bad: list[Bad]
    empty: int
    records: int

    def documents(self) -> Iterator[tuple[np.ndarray, str, bytes, int]]:
        """(ids, domain, key, bytes of text) of each document."""
        ends = np.cumsum(self.sizes)
        for size, end, domain, key, text_bytes in zip(
            self.sizes.tolist(), ends.tolist(), self.domains, self.keys, self.text_bytes.tolist(), strict=True
        ):
            yield self.ids[end - size : end], domain, key, text_bytes


class Encoder:
    """Makes `Encoded` batches out of items: `encoder(items)`."""

    def __init__(self, tokenizer: Tokenizer, settings: Settings):
        self.tokenizer, self.settings = tokenizer, settings
        self._dtype = np.uint16 if tokenizer.vocab_size <= 1 << 16 else np.int32
        self._token_bytes: np.ndarray | None = None

    def __call__(self, items: list[Item]) -> Encoded:
        found = [document_of(item) for item in items]
        bad = [d for d in found if isinstance(d, Bad)]
        documents: list[Document] = []
        empty = 0
        for document in found:
            if isinstance(document, Bad):
                continue
            if document.ids is not None:
                if problem := self._check(document):
                    bad.append(problem)
                    continue
                ids = document.ids
                if len(ids) and ids[-1] == self.tokenizer.eod_id:  # it brings its own
                    ids = ids[:-1]
                empty += not len(ids)
                documents += [document._replace(ids=ids)] if len(ids) else []
                continue
            pieces = list(chunked([document.text], self.settings.max_chars))
            kept = [p for p in pieces if p.strip()]
            empty += len(pieces) - len(kept)
            domain = well_formed(document.domain)
            documents += [Document(well_formed(p), domain) for p in kept]
        return self._pack(documents, bad, empty, len(items))

    def _pack(self, documents: list[Document], bad: list[Bad], empty: int, records: int) -> Encoded:
        ids = self._encode(documents)
        content = [d.text.encode() if d.ids is None else np.asarray(d.ids, "<i4").tobytes() for d in documents]
        sizes = np.array([len(i) + 1 for i in ids], np.int64)
        together = np.full(int(sizes.sum()), self.tokenizer.eod_id, self._dtype)
        for i, end in zip(ids, np.cumsum(sizes).tolist(), strict=True):
            together[end - 1 - len(i) : end - 1] = i
        lengths = [
            len(c) if d.ids is None else self._bytes_of(i) for d, c, i in zip(documents, content, ids, strict=True)
        ]
        keys = [hashlib.blake2b(c, digest_size=16).digest() for c in content]
        domains = [d.domain for d in documents]
        return Encoded(together, sizes, np.array(lengths, np.int64), domains, keys, bad, empty, records)

    def _encode(self, documents: list[Document]) -> list[np.ndarray]:
        pieces = [in_pieces(d.text) if d.ids is None else [] for d in documents]
        encoded = iter(self.tokenizer.encode_batch([p for own in pieces for p in own]))
        out = []
        for document, own in zip(documents, pieces, strict=True):
            parts = [next(encoded) for _ in own]
            out.append(
                document.ids if document.ids is not None else parts[0] if len(parts) == 1 else np.concatenate(parts)
            )
        return out

    def _check(self, document: Document) -> Bad | None:
        """Ids of a document that is tokenised already may not be those of this tokenizer."""
        ids = document.ids
        if not len(ids) or (ids.min() >= 0 and ids.max() < self.tokenizer.vocab_size):
            return None
        odd = int(ids.min()) if ids.min() < 0 else int(ids.max())
        why = f"id {odd} is not one of the tokenizer's {self.tokenizer.vocab_size:,}; name the one that made them"
        return Bad("id outside the vocabulary", "token ids", why)

    def _bytes_of(self, ids: np.ndarray) -> int:
        if self._token_bytes is None:
            known = self.tokenizer.token_bytes()
            self._token_bytes = np.zeros(self.tokenizer.vocab_size, np.int32) if known is None else known
        return int(self._token_bytes[np.asarray(ids, np.int64)].sum())


def chunked(documents: Iterable[str], max_chars: int | None) -> Iterator[str]:
    """Cut documents into pieces of at most `max_chars` characters, at line ends where possible; `None` cuts nothing.

    Raises:
      ConfigError: `max_chars` is less than 1.
    """
    Settings(max_chars)
    for document in documents:
        start = 0
        while max_chars is not None and len(document) - start > max_chars:
            end = document.rfind("\n", start, start + max_chars) + 1 or start + max_chars
            yield document[start:end]
            start = end
        yield document[start:]


def in_pieces(text: str, limit: int = LONG) -> list[str]:
    """A text in pieces of at most `limit` characters, tokenised one by one to bound memory.

    The cut is before a blank between two words, where the tokenizers of GPT-2, GPT-NeoX and Llama 3 cut anyway, so the
    ids are those of the whole; a text without one in the last quarter of a piece is cut at its end.
    """
    pieces, start = [], 0
    while len(text) - start > limit:
        end, low = start + limit, start + limit - limit // 4
        last = deque(_BLANK_BETWEEN_WORDS.finditer(text, low, end), maxlen=1)
        if last:
            end = last[0].start()
        pieces.append(text[start:end])
        start = end
    return [*pieces, text[start:]]


def encoded(
    batches: Iterator[tuple[Any, list[Item]]], tokenizer: Tokenizer, settings: Settings, workers: int, saved: Path
) -> Iterator[tuple[Any, Encoded]]:
    """(mark, `Encoded`) for every (mark, items), in order.

    Args:
      batches: what to encode, each with anything that belongs to it.
      workers: processes; 0 does the work here.
      saved: the tokenizer as a file, which the workers load; written here.

    Raises:
      DataError: a worker was killed.
    """
    if not workers:
        encoder = Encoder(tokenizer, settings)
        yield from ((mark, encoder(items)) for mark, items in batches)
        return
    tokenizer.save(saved)
    pool = ProcessPoolExecutor(
        workers,
        # A fork of a process with threads (Rust's, JAX's) may hang.
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start,
        initargs=(str(saved), tokenizer.eod_token, settings),
    )
    try:
        yield from _in_order(batches, lambda items: pool.submit(_work, items), ahead=2 * workers + 1)
    except BrokenProcessPool as e:
        raise DataError(
            f"{saved.parent}: a worker process was killed (out of memory?); what is done is kept, run the same again "
            f"with fewer --workers than {workers}"
        ) from e
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
        saved.unlink(missing_ok=True)


def _in_order(
    batches: Iterator[tuple[Any, list[Item]]], submit: Callable[[list[Item]], Future], ahead: int
) -> Iterator[tuple[Any, Encoded]]:
    waiting: deque[tuple[Any, Future]] = deque()
    for mark, items in batches:
        waiting.append((mark, submit(items)))
        if len(waiting) >= ahead:
            mark, future = waiting.popleft()
            yield mark, future.result()
    while waiting:
        mark, future = waiting.popleft()
        yield mark, future.result()


_encoder: Encoder | None = None


def _start(saved: str, eod_token: str, settings: Settings) -> None:
    global _encoder
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # one thread per worker
    _encoder = Encoder(load(saved, eod_token), settings)


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)  # the queue of a killed parent never ends


def _work(items: list[Item]) -> Encoded:
    return _encoder(items)

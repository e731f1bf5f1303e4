"""Opens the sources that a config names: stores as they are, corpora by preparing them on first use.

What is prepared is kept in one folder, under a name that holds a hash of everything that decides its content, so it is
used again as long as nothing changes and made anew when a file, a field or the tokenizer does.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from cpt.data.corpora._base import Fields, Part, parts_of, texts
from cpt.data.corpora._files import stamp
from cpt.data.disk import locked
from cpt.data.encoding import chunked
from cpt.data.manifest import read_manifest
from cpt.data.megatron import bin_paths, paths
from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import Tokenizer, TokenizerSpec, load
from cpt.data.tokenizing import Options, left_out, prepare
from cpt.data.writing import FORMAT
from cpt.errors import ConfigError, DataError, nearest
from cpt.registry import find

Say = Callable[[str], None]


@dataclass(frozen=True)
class SourceSpec:
    """Where the tokens of a source come from: a corpus (prepared on first use) or a store, exactly one of them.

    Attributes:
      corpus: a file of `cpt/data/corpora` (`text`, `jsonl`, ...), or `package.module:name`.
      path: what the corpus reads: a file, a folder, a glob, or several with commas between.
      text_field: the field with the text, `meta.text` for one inside another.
      domain_field: the field that names the domain of a document, e.g. `meta.pile_set_name`.
      store: a folder made by `python -m cpt.prepare`, or the prefix of a Megatron pair.
      domain: read only this domain of it.
      split: read this split of it as training data: `train`, or the documents that were kept for replay.
      validation: share of the documents that is held out, in [0, 1); a store keeps the one it was made with.
      replay_holdout: share that is kept out of training for later replay, likewise.
      dedup: drop documents with the very text of an earlier one, likewise.
      max_chars: cut longer documents at line ends; a few long documents make a poor validation set.
      max_bad: share of the records, and of the files, that may be unusable; they are counted and skipped.
      epochs: how many passes over the source a run may make.
      skip_tokens, take_tokens: read only this part of it: of a corpus that another model was trained on in its stored
        order, the first `take_tokens` are what that model has seen, what follows after `skip_tokens` is new to it.
      rows: `packed` cuts the tokens anew into rows of `batch.length`; `stored` takes the stored sequences as they are
        (Pythia's hold 2,049 tokens, so that `batch.length=2048` gives the very rows that it was trained on).
      order: of its rows: `shuffled`, anew in each epoch; `stored` reads them as they lie, as one that was shuffled
        beforehand or a curriculum wants.
    """

    corpus: str | None = None
    path: str | None = None
    text_field: str = "text"
    domain_field: str | None = None
    store: str | None = None
    domain: str | None = None
    split: Literal["train", "replay_holdout"] = "train"
    validation: float = 0.02
    replay_holdout: float = 0.0
    dedup: bool = False
    max_chars: int | None = None
    max_bad: float = 0.001
    epochs: float = 1.0
    skip_tokens: int = 0
    take_tokens: int | None = None
    rows: Literal["packed", "stored"] = "packed"
    order: Literal["shuffled", "stored"] = "shuffled"

    @property
    def fields(self) -> Fields:
        return Fields(self.text_field, self.domain_field)

    @property
    def options(self) -> Options:
        """How a store of it is made."""
        names = ("validation", "replay_holdout", "dedup", "max_chars", "max_bad")
        return Options(**{n: getattr(self, n) for n in names})


@dataclass(frozen=True)
class Source:
    """An opened source; `validation` is `None` if nothing was held out."""

    name: str
    train: TokenStore
    validation: TokenStore | None
    epochs: float


def open_sources(
    sources: Mapping[str, SourceSpec], tokenizer: TokenizerSpec, root: Path, say: Say
) -> tuple[dict[str, Source], Tokenizer | None]:
    """Open every source and the tokenizer they share.

    Args:
      sources: by name.
      tokenizer: what corpora are tokenised with. If every source is a store, the tokenizer is the one that made them.
      root: folder that keeps what is prepared, in `<source>-<hash8>/` and `tokenizer-<hash8>.json`.
      say: gets a line for every slow thing that is done.

    Returns:
      The opened sources by name, and their tokenizer (`None` for bare Megatron pairs if `tokenizer` names no file).

    Raises:
      ConfigError: no sources, or one with both or neither of `corpus` and `store`.
      DataError: data missing, damaged, or made with different tokenizers.
    """
    if not sources:
        raise ConfigError("sources: none; a run needs at least one")
    for name, spec in sources.items():
        if (spec.corpus is None) == (spec.store is None):
            given = "neither" if spec.corpus is None else "both"
            raise ConfigError(f"sources.{name}: give exactly one of corpus and store (got {given})")
        if not spec.epochs > 0:
            raise ConfigError(f"sources.{name}.epochs: {spec.epochs} is out of range (> 0)")
    stores = {n: s for n, s in sources.items() if s.store is not None}
    opened = {n: _open_store(n, s, _tokenizer_flag(tokenizer, stores)) for n, s in stores.items()}
    if len(opened) == len(sources):
        shared = _tokenizer_of_stores(opened, tokenizer)
    else:
        shared = _tokenizer_of_corpora(tokenizer, sources, root, say)
    for name, spec in sources.items():
        if spec.corpus is not None:
            opened[name] = _prepare_source(name, spec, shared, root, say)
    _check_one_tokenizer(opened)
    return {name: opened[name] for name in sources}, shared


def trained_tokenizer(spec: TokenizerSpec, source: SourceSpec, root: Path) -> Path:
    """The file under `root` that keeps a tokenizer trained on the corpus of `source`.

    Raises:
      DataError: the one that it goes on from cannot be read.
    """
    identity = [dataclasses.asdict(spec), corpus_identity(source)]
    if spec.path is not None:  # what lies there may become another one
        identity.append(load(spec.path).hash)
    return root / f"tokenizer-{_hash8(identity)}.json"


def corpus_parts(spec: SourceSpec, where: str) -> list[Part]:
    """The parts of `spec`'s corpus; `where` is the config field of its name, for errors."""
    return parts_of(find("cpt.data.corpora", spec.corpus, where), spec.path, spec.fields)


def read_corpus(spec: SourceSpec, where: str) -> Iterator[str]:
    """The text of `spec`'s corpus, cut to `max_chars`, for those that need no more than that."""
    return chunked(texts(corpus_parts(spec, where)), spec.max_chars)


def corpus_identity(spec: SourceSpec) -> dict[str, Any]:
    """What decides the documents of `spec`'s corpus, the versions of its files included; JSON data."""
    fields = {name: getattr(spec, name) for name in ("corpus", "path", "text_field", "domain_field", "max_chars")}
    return {**fields, "files": _hash8(stamp(spec.path))}


def prepare_command(spec: SourceSpec, tokenizer: str, out: str, eod_token: str | None = None) -> str:
    """The `python -m cpt.prepare` command that makes the store `out` of `spec`'s corpus."""
    flags = {"input": spec.path, "format": spec.corpus, "text_field": spec.text_field, "tokenizer": tokenizer}
    flags |= {"domain_field": spec.domain_field, "out": out, "validation": f"{spec.validation:g}"}
    flags |= {"replay_holdout": f"{spec.replay_holdout:g}" if spec.replay_holdout else None}
    flags |= {"dedup": "true" if spec.dedup else None, "max_chars": spec.max_chars, "eod_token": eod_token}
    words = [f"--{k}={v}" for k, v in flags.items() if v is not None and (k, v) != ("text_field", "text")]
    return shlex.join(["python", "-m", "cpt.prepare", *words])


def _hash8(value: Any) -> str:
    """Eight hex digits that name `value` (JSON data)."""
    canonical = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.blake2b(canonical.encode(), digest_size=4).hexdigest()


def _tokenizer_of_corpora(spec: TokenizerSpec, sources: Mapping[str, SourceSpec], root: Path, say: Say) -> Tokenizer:
    """The tokenizer of `spec`; one that is trained is kept in `root` and found there the next time."""
    build = find("cpt.data.tokenizers", spec.kind, "tokenizer.kind")
    if spec.train_on is None:
        return build(spec, None)
    if spec.train_on not in sources:
        offered = ", ".join(sources)
        raise ConfigError(
            f"tokenizer.train_on: no source '{spec.train_on}'{nearest(spec.train_on, sources)}  (there are: {offered})"
        )
    source = sources[spec.train_on]
    if source.corpus is None:
        raise ConfigError(f"tokenizer.train_on: sources.{spec.train_on} is a store; name a source that has a corpus")
    file = trained_tokenizer(spec, source, root)
    if file.is_file():  # asked first without a lock, which a folder that one may only read would not give
        return load(file, spec.eod_token)
    with locked(file.with_suffix(".lock")):
        if not file.is_file():
            say(f"training the {spec.kind} tokenizer on {spec.train_on} -> {file}")
            temporary = file.with_suffix(f".{os.getpid()}.tmp")
            build(spec, partial(read_corpus, source, f"sources.{spec.train_on}.corpus")).save(temporary)
            os.replace(temporary, file)
    return load(file, spec.eod_token)


def _prepare_source(name: str, spec: SourceSpec, tokenizer: Tokenizer, root: Path, say: Say) -> Source:
    identity = corpus_identity(spec)
    options = spec.options
    made_with = [spec.validation, spec.replay_holdout, spec.dedup, options.shard_tokens, FORMAT]
    folder = root / f"{name}-{_hash8([identity, made_with, tokenizer.hash])}"
    there = read_manifest(folder)
    if not there:
        say(f"preparing {name}: {spec.corpus} {spec.path or ''}-> {folder}".replace("  ", " "))
    manifest = prepare(corpus_parts(spec, f"sources.{name}.corpus"), tokenizer, folder, options, identity)
    for line in left_out(manifest) if not there and manifest["skipped"] else ():
        say(f"{name}: {line}")
    return _open_folder(name, spec, folder)


def _open_store(name: str, spec: SourceSpec, tokenizer_flag: str) -> Source:
    store = Path(spec.store).expanduser()
    where = f"sources.{name}.store"
    if store.is_dir():
        if not read_manifest(store):
            command = _command_for_missing(spec, tokenizer_flag)
            raise DataError(f"{where}: {store} holds no finished store; make it with `{command}`")
        source = _open_folder(name, spec, store)
        for split in (source.train, source.validation):
            if split is not None:
                split.verify()
        return source
    prefix = store.with_suffix("") if store.suffix in (".bin", ".idx") else store
    if not any(path.is_file() for path in (*paths(prefix), *bin_paths(prefix))):
        raise DataError(f"{where}: {store} does not exist; make it with `{_command_for_missing(spec, tokenizer_flag)}`")
    return Source(name, _part_of(spec, TokenStore.open(prefix)), None, spec.epochs)


def _open_folder(name: str, spec: SourceSpec, folder: Path) -> Source:
    train, validation = TokenStore.open(folder, spec.split), None
    if "validation" in train.manifest["splits"]:
        validation = TokenStore.open(folder, "validation")
        if spec.domain is not None:  # a rare domain may have nothing in it
            validation = validation.view(spec.domain) if spec.domain in validation.domains else None
    return Source(name, _part_of(spec, train), validation, spec.epochs)


def _part_of(spec: SourceSpec, store: TokenStore) -> TokenStore:
    """The part of a store that a source reads as training data."""
    if (spec.domain, spec.skip_tokens, spec.take_tokens, spec.rows) == (None, 0, None, "packed"):
        return store
    return store.view(spec.domain, spec.skip_tokens, spec.take_tokens, whole_rows=spec.rows == "stored")


def _command_for_missing(spec: SourceSpec, tokenizer_flag: str) -> str:
    is_text = spec.path is not None and ".jsonl" not in spec.path
    given = dataclasses.replace(spec, path=spec.path or "corpus/*.jsonl", corpus="text" if is_text else "jsonl")
    return prepare_command(given, tokenizer_flag, spec.store or "")


def _tokenizer_flag(spec: TokenizerSpec, stores: Mapping[str, SourceSpec]) -> str:
    """What `cpt.prepare --tokenizer=` can make a missing store with: the tokenizer of one that is there, if any is."""
    for other in stores.values():
        if (Path(other.store).expanduser() / "tokenizer.json").is_file():
            return other.store
    if spec.kind in ("file", "sentencepiece"):
        return spec.path or "tokenizer.json"
    return f"bpe:{spec.vocab_size or 8192}" if spec.kind == "bpe" else spec.kind


def _tokenizer_of_stores(opened: Mapping[str, Source], spec: TokenizerSpec) -> Tokenizer | None:
    for source in opened.values():
        if source.train.manifest:
            entry = source.train.manifest["tokenizer"]
            folder = source.train.folder
            tokenizer = load(folder, entry["eod_token"])
            if tokenizer.hash != entry["hash"]:
                raise DataError(f"{folder / 'tokenizer.json'}: not the tokenizer that made this store; put it back")
            return tokenizer
    given = spec.kind == "byte" or spec.path is not None
    return find("cpt.data.tokenizers", spec.kind, "tokenizer.kind")(spec, None) if given else None


def _check_one_tokenizer(opened: Mapping[str, Source]) -> None:
    """Ids mean the same in every source; a bare Megatron pair does not say what made it, and is believed."""
    hashes = {n: s.train.manifest["tokenizer"]["hash"] for n, s in opened.items() if s.train.manifest}
    for name, value in hashes.items():
        first, expected = next(iter(hashes.items()))
        if value != expected:
            raise DataError(
                f"sources.{first} and sources.{name}: made with different tokenizers ({expected[:8]} and {value[:8]}); "
                "prepare both with the same one"
            )

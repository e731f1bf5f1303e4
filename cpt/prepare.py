"""Make a token store out of raw data: tokenise it in parallel, split it by content, count what was skipped.

Example:
  python -m cpt.prepare --input='pile/*.jsonl.zst' --domain_field=meta.pile_set_name --tokenizer=DIR --out=stores/pile
  python -m cpt.prepare --format=stdlib_prose --tokenizer=byte --out=stores/prose --max_chars=4000

A config then names it: `sources.new.store = "stores/new"`, or one of its domains with `sources.new.domain`. Stopped and
run again, it goes on where it was; on a finished store it does nothing. The result is the same bytes either way, and
with any number of workers.
"""

from __future__ import annotations

import os
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from cpt.cli import run
from cpt.data.manifest import read_manifest
from cpt.data.preparing import SourceSpec, corpus_identity, corpus_parts, prepare, prepare_command, read_corpus
from cpt.data.tokenizers._base import Tokenizer, TokenizerSpec, load
from cpt.data.tokenizing import Progress, left_out
from cpt.errors import ConfigError
from cpt.registry import available, find

FORMATS = {r"\.(jsonl|ndjson)(\.|$)": "jsonl", r"\.parquet$": "parquet", r"\.(idx|bin)$": "megatron"}


def define_flags() -> None:
    """A function, so that importing this module leaves other commands' flags of the same names alone."""
    formats = ", ".join(available("cpt.data.corpora"))
    flags.DEFINE_string("input", None, "files to read: a file, a folder, a glob, or several with commas between")
    flags.DEFINE_string("format", None, f"one of {formats}, or package.module:name (default: by the input's name)")
    flags.DEFINE_string("text_field", "text", "field that holds the text; meta.text for one inside another")
    flags.DEFINE_string("domain_field", None, "field that names a document's domain, e.g. meta.pile_set_name")
    flags.DEFINE_string(
        "tokenizer",
        None,
        "a tokenizer.json or its folder, a SentencePiece .model, byte, or bpe:SIZE (trained on input)",
    )
    flags.DEFINE_integer("tokenizer_bytes", 1_000_000_000, "bytes of text that bpe:SIZE is trained on")
    flags.DEFINE_string("eod_token", None, "token that ends a document, where it has not one of the usual names")
    flags.DEFINE_string("out", None, "folder of the store")
    flags.DEFINE_float("validation", 0.01, "share of the documents to hold out for evaluation")
    flags.DEFINE_float("replay_holdout", 0.0, "share of the documents to keep out of training, for later replay")
    flags.DEFINE_bool("dedup", False, "drop documents with the very text of an earlier one")
    flags.DEFINE_integer("max_chars", None, "cut longer documents at line ends")
    flags.DEFINE_string("max_bad", "0.1%", "share of the records, and of the files, that may be unusable")
    flags.DEFINE_integer("workers", None, "processes that tokenise (default: one per core; 0: none beside this one)")
    flags.DEFINE_enum("write", "megatron", ["megatron", "tfds"], "tfds: also as a TFDS data set, in OUT/tfds")


def main(argv: list[str]) -> int | None:
    """Prepare what the flags say, then show what there is."""
    del argv
    given = flags.FLAGS
    for name in ("out", "tokenizer"):
        if getattr(given, name) is None:
            raise ConfigError(f"--{name}: required (see --help)")
    names = ("text_field", "domain_field", "validation", "replay_holdout", "dedup", "max_chars")
    source = SourceSpec(
        corpus=given.format or _format_of(given.input),
        path=given.input,
        max_bad=_share(given.max_bad),
        **{name: getattr(given, name) for name in names},
    )
    source.options  # noqa: B018  (wrong shares are told before a tokenizer is trained)
    out = Path(given.out).expanduser()
    command = prepare_command(source, given.tokenizer, given.out, given.eod_token)
    description = corpus_identity(source) | {"tokenizer": given.tokenizer, "command": command}
    tokenizer = _tokenizer(given, source, out, description)
    workers = len(os.sched_getaffinity(0)) if given.workers is None else given.workers
    manifest = _with_progress(source, tokenizer, out, description, workers)
    _show(manifest, out)
    if given.write == "tfds":
        from cpt.data.tfds_export import export

        print(f"{export(out)}: the same documents as a TFDS data set")


def _format_of(path: str | None) -> str:
    if path is None:
        raise ConfigError("--input: give the files to read, or a --format that needs none (see --help)")
    return next((name for pattern, name in FORMATS.items() if re.search(pattern, path)), "text")


def _share(text: str) -> float:
    """`0.1%` or `0.001`."""
    try:
        return float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError as e:
        raise ConfigError(f"--max_bad: '{text}' is no share; write 0.1% or 0.001") from e


def _tokenizer(given: Any, source: SourceSpec, out: Path, description: dict[str, Any]) -> Tokenizer:
    """The tokenizer that `--tokenizer` means."""
    flag = given.tokenizer
    if m := re.fullmatch(r"bpe:(\d+)", flag):
        if kept := _trained_before(out, description):
            return kept
        spec = TokenizerSpec(kind="bpe", vocab_size=int(m.group(1)), max_bytes=given.tokenizer_bytes)
    elif flag == "byte":
        spec = TokenizerSpec(kind="byte")
    elif flag.startswith("bpe"):
        raise ConfigError(f"--tokenizer={flag}: write bpe:SIZE, for example bpe:8192")
    else:
        spec = TokenizerSpec(kind="file", path=flag, eod_token=given.eod_token)
    return find("cpt.data.tokenizers", spec.kind, "--tokenizer")(spec, partial(read_corpus, source, "--format"))


def _trained_before(out: Path, description: dict[str, Any]) -> Tokenizer | None:
    """The tokenizer of the finished store `out`, if it is of this description: it was trained on this very text."""
    same = {k: v for k, v in description.items() if k != "command"}
    return load(out) if read_manifest(out).get("description") == same else None


def _with_progress(
    source: SourceSpec, tokenizer: Tokenizer, out: Path, description: dict[str, Any], workers: int
) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import BarColumn, SpinnerColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    parts = corpus_parts(source, "--format")
    total = sum(p.size for p in parts) if all(p.size for p in parts) else None
    columns = SpinnerColumn(), BarColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), TimeRemainingColumn()
    console = Console(file=sys.stderr)
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading", total=total)

        def progress(now: Progress) -> None:
            file = f"file {min(now.part + 1, now.parts):,} of {now.parts:,}  " if now.parts > 1 else ""
            said = f"{file}{now.documents:,} documents  {now.tokens:,} tokens"
            bar.update(task, description=said, completed=now.bytes_read)

        return prepare(parts, tokenizer, out, source.options, description, workers=workers, progress=progress)


def _show(manifest: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("split", box=None, title_justify="left")
    domains = any(any(split["domains"]) for split in manifest["splits"].values())
    if domains:
        table.add_column("domain")
    for column in ("documents", "tokens", "bytes", "bytes per token"):
        table.add_column(column, justify="right")
    for name, split in manifest["splits"].items():
        if domains:
            for domain, counts in sorted(split["domains"].items(), key=lambda d: -d[1]["tokens"]):
                table.add_row(name, domain or "(none)", *_counts(counts))
        table.add_row(name, *(["all"] if domains else []), *_counts(split), style="bold" if domains else None)
    console = Console(highlight=False)
    console.print(table)
    for line in left_out(manifest):
        console.print(line, soft_wrap=True)
    tokenizer = manifest["tokenizer"]
    console.print(f"{out}: {tokenizer['kind']} tokenizer of {tokenizer['vocab_size']:,} ids", soft_wrap=True)


def _counts(entry: dict[str, Any]) -> list[str]:
    ratio = f"{entry['text_bytes'] / entry['tokens']:.2f}" if entry["tokens"] else "-"
    return [*(f"{entry[k]:,}" for k in ("documents", "tokens", "text_bytes")), ratio]


if __name__ == "__main__":
    define_flags()
    run(main)

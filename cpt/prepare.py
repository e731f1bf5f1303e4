"""Make a token store out of text: tokenise it, hold out a validation set, write a Megatron pair and a manifest.

Example:
  python -m cpt.prepare --input='corpus/*.jsonl' --tokenizer=bpe:8192 --out=stores/new --validation=0.01
  python -m cpt.prepare --format=stdlib_prose --tokenizer=byte --out=stores/prose --max_chars=4000

A config then names it: `sources.new.store = "stores/new"`. Running the command again on a finished store does nothing;
a half-written or damaged one is made again.
"""

from __future__ import annotations

import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

from absl import flags

from cpt.cli import run
from cpt.data.preparing import SourceSpec, corpus_identity, prepare, prepare_command, read_corpus
from cpt.data.store import read_manifest
from cpt.data.tokenizers._base import Tokenizer, TokenizerSpec, load
from cpt.errors import ConfigError
from cpt.registry import available, find


def define_flags() -> None:
    """A function, so that importing this module leaves other commands' flags of the same names alone."""
    formats = ", ".join(available("cpt.data.corpora"))
    flags.DEFINE_string("input", None, "file, folder or glob to read")
    flags.DEFINE_string("format", None, f"one of {formats}, or package.module:name (default: by the input's name)")
    flags.DEFINE_string("text_field", "text", "field that holds the text; meta.text for one inside another")
    flags.DEFINE_string("tokenizer", None, "a tokenizer.json or its folder, byte, or bpe:SIZE (trained on the input)")
    flags.DEFINE_string("eod_token", None, "token that ends a document, where it has not one of the usual names")
    flags.DEFINE_string("out", None, "folder of the store")
    flags.DEFINE_float("validation", 0.01, "share of the documents to hold out")
    flags.DEFINE_integer("max_chars", None, "cut longer documents at line ends")


def main(argv: list[str]) -> int | None:
    """Prepare what the flags say, then show what there is."""
    given = flags.FLAGS
    for name in ("out", "tokenizer"):
        if getattr(given, name) is None:
            raise ConfigError(f"--{name}: required (see --help)")
    source = SourceSpec(
        corpus=given.format or _format_of(given.input),
        path=given.input,
        text_field=given.text_field,
        validation=given.validation,
        max_chars=given.max_chars,
    )
    out = Path(given.out).expanduser()
    command = prepare_command(source, given.tokenizer, given.out, given.eod_token)
    description = corpus_identity(source) | {"tokenizer": given.tokenizer, "command": command}
    tokenizer = _tokenizer(given.tokenizer, given.eod_token, source, out, description)
    manifest = _with_progress(source, tokenizer, out, description)
    _show(manifest, out)


def _format_of(path: str | None) -> str:
    if path is None:
        raise ConfigError("--input: give the files to read, or a --format that needs none (see --help)")
    return "jsonl" if re.search(r"\.(jsonl|ndjson)(\.|$)", path) else "text"


def _tokenizer(
    flag: str, eod_token: str | None, source: SourceSpec, out: Path, description: dict[str, Any]
) -> Tokenizer:
    """The tokenizer that `--tokenizer` means."""
    if m := re.fullmatch(r"bpe:(\d+)", flag):
        if _made_from(out, description):
            return load(out)  # trained when the store was made, on this very text
        spec = TokenizerSpec(kind="bpe", vocab_size=int(m.group(1)))
    elif flag == "byte":
        spec = TokenizerSpec(kind="byte")
    elif flag.startswith("bpe"):
        raise ConfigError(f"--tokenizer={flag}: write bpe:SIZE, for example bpe:8192")
    else:
        spec = TokenizerSpec(kind="file", path=flag, eod_token=eod_token)
    return find("cpt.data.tokenizers", spec.kind, "--tokenizer")(spec, partial(read_corpus, source, "--format"))


def _made_from(out: Path, description: dict[str, Any]) -> bool:
    """Whether the store `out` is finished and of this description."""
    return read_manifest(out).get("description") == {k: v for k, v in description.items() if k != "command"}


def _with_progress(source: SourceSpec, tokenizer: Tokenizer, out: Path, description: dict[str, Any]) -> dict[str, Any]:
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    console = Console(file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("reading")

        def progress(documents: int, tokens: int) -> None:
            bar.update(task, description=f"{documents:,} documents  {tokens:,} tokens")

        return prepare(read_corpus(source, "--format"), tokenizer, out, source.validation, description, progress)


def _show(manifest: dict[str, Any], out: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("split", box=None, title_justify="left")
    for column in ("documents", "tokens", "bytes", "bytes per token"):
        table.add_column(column, justify="right")
    for name, split in manifest["splits"].items():
        counts = (f"{split[k]:,}" for k in ("documents", "tokens", "text_bytes"))
        table.add_row(name, *counts, f"{split['text_bytes'] / split['tokens']:.2f}")
    console = Console(highlight=False)
    console.print(table)
    tokenizer = manifest["tokenizer"]
    console.print(f"{out}: {tokenizer['kind']} tokenizer of {tokenizer['vocab_size']:,} ids", soft_wrap=True)


if __name__ == "__main__":
    define_flags()
    run(main)

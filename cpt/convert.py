"""Hugging Face model directories: what one holds, one in, a run out.

    python -m cpt.convert inspect models/Qwen2.5-0.5B                          # sizes, and whether it loads
    python -m cpt.convert import --hf=models/Qwen2.5-0.5B --out=runs/qwen      # then --config.init.from_run=runs/qwen
    python -m cpt.convert export --workdir=runs/demo-3f9c2a71 --out=models/demo --dtype=bfloat16
    python -m cpt.convert export --workdir=runs/demo-3f9c2a71 --step=400 --out=models/demo-400
    python -m cpt.convert export --workdir=runs/demo-3f9c2a71 --out=models/demo --push=owner/name   # and to the Hub
    python -m cpt.convert grow --hf=models/pythia-160m --kind=hypercloning --width=1536 --out=models/pythia-160m-wide
    python -m cpt.convert grow --list                                          # the ways to grow, shrink or average
    python -m cpt.convert vocabulary --hf=models/pythia-160m --tokenizer=models/german --out=models/pythia-160m-german
    python -m cpt.convert vocabulary --workdir=runs/demo-3f9c2a71 --tokenizer=german --extend --method=focus \\
        --auxiliary=german.vec --out=models/demo-german                        # keeps every old token

A directory is read by its `config.json`, safetensors and tokenizer; pickles are not opened. What is exported loads in
`transformers` and what is built on it, and has a model card that tells what the run learned and forgot. `--push` needs
the package `huggingface_hub` and a token: `HF_TOKEN`, or the login that is stored.

`vocabulary` gives a model another tokenizer: tokens that both have keep their rows of embedding and head, the others
get new ones. A run can do the same when it starts, with `init.vocabulary`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from absl import flags
from rich.console import Console
from rich.table import Table

from cpt import cli, hub
from cpt.data.tokenizers._base import load
from cpt.errors import ConfigError, UserError, nearest
from cpt.models import convert
from cpt.models.rope import KINDS
from cpt.models.spec import DecoderSpec, parameter_count
from cpt.models.vocabulary.spec import ROOM, VocabularySpec
from cpt.registry import available
from cpt.rooms import show_rooms
from cpt.sections import to_dict
from cpt.units import human

COMMANDS = ("inspect", "import", "export", "grow", "vocabulary")
REQUIRED = {
    "import": ("hf", "out"),
    "export": ("workdir", "out"),
    "grow": ("kind", "out"),
    "vocabulary": ("tokenizer", "out"),
}
SHOWN = ("layers", "width", "heads", "kv_heads", "head_dim", "ff_dim", "vocab_size", "context")


def define_flags(command: str) -> None:
    """The flags of one of the commands."""
    if command == "inspect":
        return
    if command == "import":
        flags.DEFINE_string("hf", None, "Hugging Face directory: config.json, safetensors, tokenizer.json.")
        flags.DEFINE_string("out", None, "Folder to make; `init.from_run` takes it.")
        return
    if command == "grow":
        flags.DEFINE_string("hf", None, "Hugging Face directory to start from; or --workdir.")
        flags.DEFINE_string("kind", None, "A file of cpt/models/initialisers (see --list), or package.module:name.")
        flags.DEFINE_multi_string("option", [], "Of the method, as name=value; may be given several times.")
        flags.DEFINE_list("models", [], "Further models, of a method that takes several.")
        for name in ("layers", "width", "heads", "kv_heads", "head_dim", "ff"):
            flags.DEFINE_integer(
                name, None, "Of the result; as in the source, or in proportion to --width.", lower_bound=1
            )
        flags.DEFINE_float("norm_eps", None, "Of the result; as in the source.")
        flags.DEFINE_bool("list", False, "Show the methods and stop.")
    if command == "vocabulary":
        define_vocabulary_flags()
    if command == "export":
        flags.DEFINE_string(
            "push", None, "Repository of the Hugging Face Hub, owner/name, that gets the folder as well."
        )
        flags.DEFINE_bool("private", False, "Make that repository a private one, where it is not there yet.")
    flags.DEFINE_string("workdir", None, "Run directory.")
    flags.DEFINE_integer("step", None, "Which of its checkpoints; the newest by default.", lower_bound=0)
    flags.DEFINE_string("out", None, "Folder to make.")
    flags.DEFINE_enum("dtype", "float32", list(convert.DTYPES), "Of the stored tensors.")
    flags.DEFINE_integer("shard_bytes", convert.SHARD_BYTES, "Largest file of tensors.", lower_bound=1)
    told = "'none' for none; by default that of the run." if command != "vocabulary" else "the new one."
    flags.DEFINE_string("tokenizer", None, f"tokenizer.json, or its folder; {told}")
    flags.DEFINE_bool("overwrite", False, "Replace the folder if it is there.")


def define_vocabulary_flags() -> None:
    """Those that `vocabulary` has beside the ones of `export`."""
    methods = ", ".join(available(ROOM))
    flags.DEFINE_string("hf", None, "Hugging Face directory of the model, in place of --workdir.")
    flags.DEFINE_string("tokenizer_of", None, "The model's own tokenizer, where it is not beside it.")
    flags.DEFINE_string("method", "gaussian", f"How new rows are made: {methods}, or package.module:name.")
    flags.DEFINE_bool("extend", False, "Keep the old tokenizer and add the tokens of --tokenizer, both BPE.")
    flags.DEFINE_enum("copy", "overlap", ["overlap", "special"], "Which tokens that both have keep their row.")
    flags.DEFINE_string("auxiliary", None, "Word vectors of the new tokens: .vec or .npz (focus, wechsel).")
    flags.DEFINE_string("auxiliary_of_old", None, "Those of the old language (wechsel).")
    flags.DEFINE_string("dictionary", None, "Pairs of words, a tab between, that rotate the latter (wechsel).")
    flags.DEFINE_string("text", None, "Text of the new kind: a file, or a folder of .txt files (convex_hull).")
    flags.DEFINE_integer("seed", 0, "Of all draws.", lower_bound=0)
    flags.DEFINE_multi_string("option", [], "name=number of the method, e.g. neighbours=5; may be given again.")
    flags.DEFINE_integer("multiple", 1, "The model gets a multiple of so many rows.", lower_bound=1)


def main(command: str, argv: list[str]) -> int:
    """Run one of the commands; returns the exit code."""
    given = flags.FLAGS
    if command == "inspect":
        if len(argv) != 1:
            raise ConfigError("inspect: name one directory, e.g. python -m cpt.convert inspect models/pythia-160m")
        return inspect(Path(argv[0]))
    if command == "grow" and given.list:
        show_rooms({"init.transform.kind": "cpt.models.initialisers"})
        return 0
    if command == "vocabulary" and bool(given.hf) == bool(given.workdir):
        raise ConfigError("vocabulary: give the model, either --hf=DIR or --workdir=RUN (see --help)")
    for name in REQUIRED[command]:
        if not getattr(given, name):
            raise ConfigError(f"--{name}: required (see --help)")
    if command == "grow":
        return grow(given)
    if command == "export":
        return export(given)
    from cpt.training import exchange  # starts JAX; looking into a directory needs none

    if command == "import":
        exchange.import_model(Path(given.hf), Path(given.out), print)
        print(f"wrote {given.out}; start from it with --config.init.from_run={given.out}")
        return 0
    return change_vocabulary()


def export(given: flags.FlagValues) -> int:
    """Write a run as a model directory, and push it where that is asked for."""
    if given.private and given.push is None:
        raise ConfigError("--private: is about a repository of the Hub; name it with --push=owner/name")
    repository = None if given.push is None else hub.opened(given.push, given.private)
    from cpt.training import exchange

    asked = exchange.Export(given.dtype, given.shard_bytes, given.tokenizer, given.overwrite)
    saved = exchange.export_run(Path(given.workdir), given.step, Path(given.out), asked, print)
    print(f"wrote {given.out} from checkpoint {saved}")
    if repository is not None:
        message = f"Checkpoint {saved} of {Path(given.workdir).name}"
        print(f"pushed to {repository.push(Path(given.out), message, print)}")
    return 0


def grow(given: flags.FlagValues) -> int:
    """Make a model of another one."""
    if bool(given.hf) == bool(given.workdir):
        raise ConfigError("grow: give one of --hf and --workdir (see --help)")
    from cpt.training import exchange, growing

    sizes = {name: getattr(given, name) for name in growing.SIZES if getattr(given, name) is not None}
    options, models = growing.parse_options(given.option), [Path(folder) for folder in given.models]
    growth = growing.Growth(given.kind, sizes, options, models)
    asked = exchange.Export(given.dtype, given.shard_bytes, given.tokenizer, given.overwrite)
    growing.grow_model(Path(given.hf or given.workdir), given.step, Path(given.out), growth, asked, print)
    print(f"wrote {given.out}; start from it with --config.init.from_hf={given.out}")
    return 0


def change_vocabulary() -> int:
    """`vocabulary`: a model that gets another tokenizer, from the flags."""
    from cpt.training import exchange, vocabulary

    given, where = flags.FLAGS, "--"
    options: dict[str, float] = {}
    for text in given.option:
        name, _, value = text.partition("=")
        try:
            options[name] = float(value)
        except ValueError as e:
            raise ConfigError(f"--option={text}: give a name and a number, e.g. --option=neighbours=5") from e
    fields = ("method", "tokenizer_of", "copy", "auxiliary", "auxiliary_of_old", "dictionary", "text", "seed")
    spec = VocabularySpec(**{name: getattr(given, name) for name in fields}, options=options)
    if given.hf:
        brought = vocabulary.of_folder(given.hf, given.tokenizer_of, where)
    else:
        saved = exchange.checkpoint_of_run(Path(given.workdir), given.step)
        brought = vocabulary.of_run(given.workdir, saved, given.tokenizer_of, where)
    export = exchange.Export(given.dtype, given.shard_bytes, None, given.overwrite)
    change = vocabulary.Change(Path(given.tokenizer).expanduser(), given.extend, given.multiple, export)
    vocabulary.change_vocabulary(brought, spec, change, Path(given.out), print)
    print(f"wrote {given.out}; start from it with --config.init.from_hf={given.out}")
    return 0


def inspect(folder: Path) -> int:
    """Print what a directory holds; 2 where it does not load."""
    found = convert.inspect(folder)
    table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
    for name, text in _described(folder, found):
        table.add_row(name, text)
    Console(width=None if sys.stdout.isatty() else 160).print(table)
    if found.problem is None:
        return 0
    print(found.problem, file=sys.stderr)
    return 2


def _described(folder: Path, found: convert.Contents) -> list[tuple[str, str]]:
    spec = found.spec
    dtypes = ", ".join(found.dtypes if len(found.dtypes) == 1 else (f"{n} {d}" for d, n in found.dtypes.items()))
    rows = [("architecture", f"{found.architecture}{f', family {spec.family}' if spec else ''}")]
    if spec is not None:
        rows.append(("sizes", ", ".join(f"{name} {getattr(spec, name):,}" for name in SHOWN)))
        rows.append(("options", _options(spec)))
        body = parameter_count(spec, embedding=False)
        rows.append(("parameters", f"{parameter_count(spec):,} ({body:,} without embedding and head)"))
    if found.files:
        files = f"{found.files} file{'s' if found.files > 1 else ''}, {human(found.stored_bytes)}B"
        rows.append(("tensors", f"{found.tensors:,} in {files}, {dtypes}"))
    rows.append(("tokenizer", _tokenizer(folder, spec)))
    rows.append(("loads", "no" if found.problem else "yes"))
    return rows


def _options(spec: DecoderSpec) -> str:
    """The fields that are neither sizes nor matters of training."""
    hidden = {*SHOWN, "ff", "family", "init", "init_std", "compute_dtype", "remat"}
    said: dict[str, Any] = {k: v for k, v in to_dict(spec).items() if k not in hidden}
    if rope := said.pop("rope", None):
        read = ("kind", *KINDS[rope["kind"]])
        said |= {f"rope.{k}": v for k, v in rope.items() if k in read and v is not None}
    return ", ".join(f"{name} {value}" for name, value in said.items())


def _tokenizer(folder: Path, spec: DecoderSpec | None) -> str:
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        return "none here"
    try:
        tokenizer = load(folder)
    except UserError as e:
        return f"cannot be read ({e})"
    more = ", more than the model has" if spec is not None and tokenizer.vocab_size > spec.vocab_size else ""
    return f"{tokenizer.kind}, {tokenizer.vocab_size:,} ids{more}, a document ends with {tokenizer.eod_token}"


def run() -> int:
    """The command line."""
    argv = list(sys.argv)
    if len(argv) < 2 or argv[1].startswith("-"):
        return cli.call(_no_command, argv)
    command = argv.pop(1)
    if command not in COMMANDS:
        line = f"{command}: no such command{nearest(command, COMMANDS)}  (there are: {', '.join(COMMANDS)})"
        print(ConfigError(line), file=sys.stderr)
        return 2
    define_flags(command)
    words = [a for a in argv[1:] if not a.startswith("-")] if command == "inspect" else []
    return cli.call(lambda _: main(command, words), [a for a in argv if a not in words])


def _no_command(argv: list[str]) -> int:
    raise ConfigError(f"name a command: {', '.join(COMMANDS)} (see --help)")


if __name__ == "__main__":
    sys.exit(run())

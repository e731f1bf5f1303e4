"""Models between Hugging Face directories and run directories, with their tokenizer and, going out, a model card."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from cpt import __version__
from cpt.data.tokenizers._base import load
from cpt.data.tokenizers.byte import ByteTokenizer
from cpt.errors import ConfigError, RunError, UserError
from cpt.evaluators.rows import read_run, write_atomic
from cpt.evaluators.summary import summary_of
from cpt.models import base, convert
from cpt.models.spec import DecoderSpec, parameter_count
from cpt.reports.model_card import model_card
from cpt.sections import parse, to_dict
from cpt.training.checkpoint import FULL_KINDS, Checkpoints, DamagedCheckpoint, Saved, restore
from cpt.training.preservation import checkpoints_of
from cpt.training.spec import CheckpointSpec
from cpt.training.state import State
from cpt.training.workdir import lock, prepare_workdir

Say = Callable[[str], None]
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "tokenizer.model")


@dataclass(frozen=True)
class Export:
    """How a model is written.

    Attributes:
      dtype, shard_bytes, overwrite: as in `cpt.models.convert.write`.
      tokenizer: file or folder of the tokenizer, "none" for none; None is that of the run.
    """

    dtype: str = "float32"
    shard_bytes: int = convert.SHARD_BYTES
    tokenizer: str | None = None
    overwrite: bool = False


def import_model(folder: Path, out: Path, say: Say) -> Path:
    """Make `out` a directory that `init.from_run` takes, of the model in a Hugging Face directory.

    It holds one checkpoint, `grid/0` (parameters only: such a model comes without optimizer state), a `plan.json` with
    the spec of the model, and the files of the tokenizer. Each tensor lies spread over the devices before the next one
    is read.

    Returns:
      The checkpoint.

    Raises:
      ConfigError: no such folder, a model or setting that no model here has; `out` is there.
      RunError: a file is missing or damaged; the disk fails.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"--out={out}: is there already; name another folder, or remove it first")
    spec = convert.read_spec(folder)
    tokenizer = hash_of(folder, say)
    say(f"reading {parameter_count(spec):,} parameters, family {spec.family}")
    place = spread()
    _, params = convert.read(folder, lambda keys, array: jax.device_put(array, place(array.shape)))
    prepare_workdir(out)
    with lock(out, say):
        for name in TOKENIZER_FILES:
            if (folder / name).is_file():
                shutil.copyfile(folder / name, out / name)
        source = {"cpt": __version__, "hf": str(folder)}
        # A checkpoint of parameters only has no optimizer that a run could go on with.
        known = {"model": to_dict(spec), "optimizer": {"kind": None}}
        plan = {"name": folder.resolve().name, "imported": source, "spec": known}
        saver = Checkpoints(out / "checkpoints", CheckpointSpec(concurrent_gb=1))  # whoever imports may have a laptop
        saver.save("grid", 0, State(params, None), {"tokenizer": tokenizer, "imported": source}, must=True, copy=False)
        saver.close()
        write_atomic(out / "plan.json", json.dumps(plan, indent=1))
    return out / "checkpoints" / "grid" / "0"


def export_run(workdir: Path, step: int | None, out: Path, asked: Export, say: Say) -> Saved:
    """Write a checkpoint of the run in `workdir` as a Hugging Face directory with a model card.

    Args:
      step: which; None is the newest.

    Returns:
      The checkpoint that was written.

    Raises:
      ConfigError: `out` is there; a model that is no architecture of Hugging Face; no tokenizer of the run is found.
      RunError: no run there, no such checkpoint, a damaged one; the disk fails.
    """
    spec = model_of_run(workdir)
    saved = checkpoint_of_run(workdir, step)
    params, meta = params_of(saved, spec)
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = tokenizer_of_run(workdir, meta.get("tokenizer"), asked.tokenizer, Path(scratch))
        say(
            f"writing {parameter_count(spec):,} parameters as {asked.dtype}, "
            + ("with" if tokenizer else "without")
            + " tokenizer"
        )
        card = _card(workdir, saved, spec, asked.dtype)
        convert.write(
            out, spec, params, tokenizer, asked.dtype, asked.shard_bytes, asked.overwrite, {"README.md": card}
        )
    return saved


def model_of_run(workdir: Path) -> DecoderSpec:
    """The model of a run, or of what `import_model` made. Raises RunError where its plan does not tell."""
    try:
        stored = json.loads((workdir / "plan.json").read_text())
        return parse(DecoderSpec, stored["spec"]["model"], "model")
    except (OSError, ValueError, KeyError, TypeError, UserError) as e:
        raise RunError(f"{workdir}: its plan.json does not tell the model ({e}); give the directory of a run") from e


def params_of(saved: Saved, spec: DecoderSpec) -> tuple[Any, dict[str, Any]]:
    """The parameters of a checkpoint, spread over the devices, and its meta. Raises RunError where it is damaged."""
    place = spread()
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place(leaf.shape)),
        base.build(spec).abstract(),
    )
    try:
        (params, _), meta = restore(saved, State(abstract, None), params_only=True)
    except DamagedCheckpoint as e:
        raise RunError(f"{saved.path}: {e}; choose another --step, or bring it back from a copy") from e
    return params, meta


def tokenizer_of_run(workdir: Path, wanted: str | None, given: str | None, scratch: Path) -> Path | None:
    """A `tokenizer.json` with the hash `wanted`: the one `given`, or the first of those that the run could have used.

    Args:
      wanted: hash that the checkpoint was saved with; None where nobody knew it.
      given: file or folder; "none" for no tokenizer.
      scratch: folder for one that is in no file.

    Raises:
      ConfigError: the one that is given is another one, or none is found.
    """
    if given == "none":
        return None
    if given is not None:
        file = Path(given).expanduser()
        if wanted and load(file).hash != wanted:
            raise ConfigError(f"--tokenizer={given}: not the tokenizer that the run was trained with ({wanted[:8]})")
        return file
    ByteTokenizer().save(scratch / "tokenizer.json")
    for file in (*_candidates(workdir), scratch / "tokenizer.json") if wanted else ():
        try:
            if file.is_file() and load(file).hash == wanted:
                return file
        except UserError:  # of another run, or half-written: no candidate
            continue
    raise ConfigError(
        f"{workdir}: its tokenizer ({(wanted or 'unknown')[:8]}) is not found beside its data; give it with "
        "--tokenizer=FILE, or export without one: --tokenizer=none"
    )


def _candidates(workdir: Path) -> Iterator[Path]:
    """Where the tokenizer of a run may lie: beside it, where its config says, and with the stores."""
    yield workdir / "tokenizer.json"
    spec = json.loads((workdir / "plan.json").read_text())["spec"]
    if path := (spec.get("tokenizer") or {}).get("path"):
        yield (Path(path) / "tokenizer.json") if Path(path).is_dir() else Path(path)
    for source in (spec.get("sources") or {}).values():
        if source.get("store"):
            yield Path(source["store"]).expanduser() / "tokenizer.json"
    stores = Path(spec.get("stores") or "stores")
    yield from sorted(stores.glob("tokenizer-*.json"))
    yield from sorted(stores.glob("*/tokenizer.json"))


def checkpoint_of_run(workdir: Path, step: int | None) -> Saved:
    """The checkpoint of `step`, or the newest. Raises RunError where there is none, naming the nearest."""
    finished = Checkpoints(checkpoints_of(workdir)).finished((*FULL_KINDS, "grid"))
    found = [s for s in finished if step in (None, s.step)]
    if not found:
        near = sorted({s.step for s in finished}, key=lambda s: (abs(s - (step or 0)), s))[:6]
        of_step = "" if step is None else f" of step {step}"
        raise RunError(f"{workdir}: no checkpoint{of_step}; nearest: {', '.join(map(str, near)) or 'none'}")
    return found[0]


def _card(workdir: Path, saved: Saved, spec: DecoderSpec, dtype: str) -> str:
    run = read_run(workdir)
    facts = [
        ("parameters", f"{parameter_count(spec):,}"),
        ("family", spec.family),
        ("context", f"{spec.context:,} tokens"),
        ("stored as", dtype),
        ("checkpoint", f"{saved} of {run.name}"),
        *(("started from", str(path)) for path in _origin(run.plan)),
    ]
    return model_card(run, summary_of(run) if run.evals else {}, facts, saved.step)


def _origin(plan: dict[str, Any]) -> list[str]:
    """Names of the models that a run says it started from, without the folders of whoever ran it."""
    init = (plan.get("spec") or {}).get("init") or {}
    paths = [init.get("from_run"), init.get("from_hf"), (plan.get("imported") or {}).get("hf")]
    return [Path(p).name for p in paths if p]


def hash_of(folder: Path, say: Say) -> str | None:
    """Hash of the tokenizer in a Hugging Face directory; None, and told, where there is none that can be read."""
    if not any((folder / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        say(f"{folder}: has no tokenizer.json; whoever starts from this has to know which ids mean what")
        return None
    try:
        return load(folder).hash
    except UserError as e:
        say(f"the tokenizer cannot be read ({e}); whoever starts from this has to know which ids mean what")
        return None


def spread() -> Callable[[tuple[int, ...]], NamedSharding]:
    """Where arrays of a shape lie on all devices: split along the first dimension that these divide."""
    mesh = jax.make_mesh((jax.device_count(),), ("fsdp",), axis_types=(jax.sharding.AxisType.Auto,))

    def place(shape: tuple[int, ...]) -> NamedSharding:
        axis = next((i for i, n in enumerate(shape) if n % mesh.size == 0 and len(shape) > 1), None)
        return NamedSharding(mesh, PartitionSpec(*(["fsdp" if i == axis else None for i in range(len(shape))])))

    return place

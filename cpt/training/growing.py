"""`python -m cpt.convert grow`: a Hugging Face directory made of one or several models by `cpt/models/initialisers`."""

from __future__ import annotations

import ast
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import jax

from cpt.errors import ConfigError
from cpt.models import convert
from cpt.models.growing import grow
from cpt.models.spec import DecoderSpec, parameter_count
from cpt.training.exchange import Export, Say, tokenizer_of_run
from cpt.training.sharding import device_mesh
from cpt.training.transforming import Parent, check_start, check_tokenizer, read_model

SIZES = ("layers", "width", "heads", "kv_heads", "head_dim", "ff", "norm_eps")
"""Fields of the target that may be given; the others are those of the source."""


@dataclass(frozen=True)
class Growth:
    """What is made.

    Attributes:
      kind: a file of `cpt/models/initialisers`, or `package.module:name`.
      sizes: fields of the target that differ from the source's, of `SIZES`.
      options: of the method.
      models: further models for a method that takes several.
    """

    kind: str
    sizes: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)
    models: Sequence[Path] = ()


def grow_model(folder: Path, step: int | None, out: Path, growth: Growth, asked: Export, say: Say) -> DecoderSpec:
    """Write the Hugging Face directory `out` of a model that is made of the one in `folder`.

    Args:
      folder: a run directory or a Hugging Face directory.
      step: of the run's checkpoint; None is the newest.
      asked: how it is written.

    Returns:
      Its spec.

    Raises:
      ConfigError: no such method; it does not make such a model of that one; `out` is there; no tokenizer is found.
      RunError: a model is missing or damaged; the disk fails.
    """
    check_start(growth.kind, str(folder))
    convert.check_out(out, asked.overwrite)
    mesh = device_mesh({"data": 1, "fsdp": jax.device_count(), "sequence": 1, "tensor": 1}, jax.devices())
    parents = [read_model(folder, step, mesh), *(read_model(other, None, mesh) for other in growth.models)]
    first = parents[0]
    for other in parents[1:]:
        check_tokenizer("--models", other.place, other.tokenizer, first.tokenizer)
    target = target_of(first.spec, growth.sizes)
    counts = [parameter_count(spec) for spec in (first.spec, target)]
    say(f"{growth.kind}: {counts[0]:,} parameters become {counts[1]:,}")
    with tempfile.TemporaryDirectory() as scratch:
        tokenizer = _tokenizer(folder, first, asked.tokenizer, Path(scratch))
        params = grow(growth.kind, [(p.spec, p.params) for p in parents], target, growth.options)
        card = {"README.md": _card(out.name, growth, parents, target)}
        convert.write(out, target, params, tokenizer, asked.dtype, asked.shard_bytes, asked.overwrite, card)
    return target


def target_of(source: DecoderSpec, sizes: Mapping[str, Any]) -> DecoderSpec:
    """The spec of the result: the source's, with these sizes.

    A width that is given alone takes heads, heads of keys and values and the inner width of the MLP along in the same
    proportion, and leaves the channels of a head.

    Raises:
      ConfigError: the family has no such field; that proportion gives no whole number; the sizes contradict each other.
    """
    known = {f.name for f in fields(source)}
    for name in sizes:
        if name not in known:
            raise ConfigError(f"--{name}: models of the family {source.family} do not have it; leave it out")
    out = dict(sizes)
    if "width" in sizes:
        for name, now in (("heads", source.heads), ("kv_heads", source.kv_heads), ("ff", source.ff_dim)):
            if name not in known or name in sizes:
                continue
            scaled, rest = divmod(now * sizes["width"], source.width)
            if rest:
                raise ConfigError(
                    f"--{name}: {now} times {sizes['width']} / {source.width}, the growth of the width, is no whole "
                    f"number; give --{name} as well"
                )
            out[name] = scaled
        if "head_dim" in known:
            out.setdefault("head_dim", source.head_dim)
    return replace(source, **out)


def parse_options(given: Sequence[str]) -> dict[str, Any]:
    """Options of the form `name=value`; a value that is no Python literal is text.

    Raises:
      ConfigError: one is not of that form.
    """
    out: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not (name.isidentifier() and equals):
            raise ConfigError(f"--option={text}: is not of the form name=value")
        try:
            out[name] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            out[name] = value
    return out


def _tokenizer(folder: Path, parent: Parent, given: str | None, scratch: Path) -> Path | None:
    beside = folder / "tokenizer.json"
    if given is None and beside.is_file():
        return beside
    if given is None and parent.tokenizer is None:
        return None
    return tokenizer_of_run(folder, parent.tokenizer, given, scratch)


def _card(name: str, growth: Growth, parents: Sequence[Parent], target: DecoderSpec) -> str:
    options = ", ".join(f"{k}={v!r}" for k, v in growth.options.items())
    sizes = ", ".join(f"{k} {getattr(target, k)}" for k in ("layers", "width", "heads", "kv_heads", "ff_dim"))
    lines = [
        f"# {name}",
        f"Made by `{growth.kind}`{f' ({options})' if options else ''}, not trained since.",
        f"- from: {', '.join(p.name for p in parents)}",
        f"- sizes: {sizes}; {parameter_count(target):,} parameters",
    ]
    return "\n\n".join(lines[:2]) + "\n\n" + "\n".join(lines[2:]) + "\n"

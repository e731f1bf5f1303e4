"""How many tokens the sources of a plan have, told without preparing or reading any."""

from __future__ import annotations

import glob
from pathlib import Path
from typing import TYPE_CHECKING

from cpt.data.manifest import read_manifest
from cpt.data.preparing import SourceSpec, corpus_identity, trained_tokenizer
from cpt.data.store import TokenStore
from cpt.data.tokenizers._base import load
from cpt.data.writing import FORMAT
from cpt.errors import UserError
from cpt.registry import find

if TYPE_CHECKING:
    from cpt.plan import RunPlan


def known_sizes(plan: RunPlan) -> tuple[dict[str, int], dict[str, str]]:
    """Training tokens of the sources that the plan reads, in whole rows, as far as stores of them are there.

    Nothing is prepared and no token is read. Of a source without a size the second dict says why.
    """
    sizes, unknown, length = {}, {}, plan.spec.batch.length
    for name in dict.fromkeys(c.source for p in plan.phases for c in p.columns if c.source is not None):
        spec = plan.spec.sources[name]
        try:
            place = _prepared(plan, name, spec) if spec.store is None else Path(spec.store)
            if place is None:
                unknown[name] = "it is prepared when it is first used"
                continue
            store = TokenStore.open(place, spec.split)
            store = store.view(spec.domain, spec.skip_tokens, spec.take_tokens, whole_rows=spec.rows == "stored")
            sizes[name] = store.rows(length) * length
        except UserError as e:  # a plan can be looked at where its data is not; who trains is told by an error
            unknown[name] = str(e)
    return sizes, unknown


def _prepared(plan: RunPlan, name: str, spec: SourceSpec) -> Path | None:
    """The folder in which `open_sources` would find the corpus prepared; told by what the manifests say they are."""
    root, options = Path(plan.spec.stores), spec.options
    folders = sorted(root.glob(f"{glob.escape(name)}-????????"))
    if not folders or (tokenizer := _tokenizer_hash(plan, root)) is None:
        return None
    wanted = {key: getattr(options, key) for key in ("validation", "replay_holdout", "dedup", "shard_tokens")}
    wanted |= {"description": corpus_identity(spec), "format": FORMAT}
    for folder in folders:
        manifest = read_manifest(folder)
        same = all(manifest.get(key) == value for key, value in wanted.items())
        if manifest and same and manifest["tokenizer"]["hash"] == tokenizer:
            return folder
    return None


def _tokenizer_hash(plan: RunPlan, root: Path) -> str | None:
    """Of the tokenizer that corpora are prepared with; None for one that is not trained yet."""
    spec = plan.spec.tokenizer
    if spec.train_on is None:
        return find("cpt.data.tokenizers", spec.kind, "tokenizer.kind")(spec, None).hash
    if spec.train_on not in plan.spec.sources:
        return None
    file = trained_tokenizer(spec, plan.spec.sources[spec.train_on], root)
    return load(file, spec.eod_token).hash if file.is_file() else None

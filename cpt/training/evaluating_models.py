"""Evaluating models that are no run of ours: a row of Hugging Face directories on the sets of a recipe."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
from jax.sharding import NamedSharding

from cpt.config import RunSpec
from cpt.data.preparing import open_sources
from cpt.data.tokenizers._base import Tokenizer, load
from cpt.errors import ConfigError, RunError
from cpt.evaluators.rows import write_atomic
from cpt.models import base, convert
from cpt.models.spec import DecoderSpec
from cpt.plan import RunPlan, resolve
from cpt.sections import to_dict
from cpt.training.benchmarks import Benchmarks
from cpt.training.evaluating import Say, chosen
from cpt.training.evaluation import Evaluation, build_evaluation
from cpt.training.evaluation_rows import Done, Missing, Writer
from cpt.training.feed import Data
from cpt.training.recorder import note_origin
from cpt.training.sharding import BATCH, parameter_shardings, run_mesh
from cpt.training.workdir import lock, prepare_workdir


def evaluate_models(
    models: Sequence[Path],
    recipe: RunSpec,
    out: Path,
    names: Sequence[str] | None,
    say: Say,
    benchmarks: Benchmarks | None = None,
    tokens_per_step: int = 1,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> Done:
    """Evaluate Hugging Face directories on the sets and probes of `recipe`; rows go to the folder `out`.

    A model's step is the last number in its folder's name (`pythia-160m-step1000`), or its place in the row where a
    name has none; changes are those since the first one. What `out` has already is not computed again.

    Args:
      names: sets and probes; None for all, or for none where there are `benchmarks`.
      benchmarks: tasks of lm-evaluation-harness to run on them.
      tokens_per_step: tokens that the models were trained on per step.

    Raises:
      ConfigError: two models of one step, a tokenizer that is not that of the sets, no such set.
      RunError: a directory cannot be read.
    """
    steps = steps_of(models)
    names = chosen(recipe.evaluation, names, benchmarks)
    prepare_workdir(out)
    with lock(out, say, ".evaluating", "evaluates"):
        _claim(out, dict(zip(map(str, steps), map(str, models), strict=True)))
        missing, done, started = Missing(out, names, again=False), Done(), time.monotonic()
        todo = [(step, path) for step, path in sorted(zip(steps, models, strict=True)) if missing.at(step)]
        if not todo:
            return done
        spec = recipe
        sources, tokenizer = open_sources(spec.sources, spec.tokenizer, Path(spec.stores), say)
        data = Data(sources, tokenizer)
        mesh = run_mesh(spec)
        made: dict[DecoderSpec, Evaluation] = {}
        for step, path in todo:
            begun = time.monotonic()
            check_tokenizer(path, tokenizer)
            model, params = _load(path, mesh, spec)
            if model.spec not in made:
                made[model.spec] = _evaluation(resolve(replace(spec, model=model.spec)), data, model, mesh)
                origin = made[model.spec].origin()
                note_origin(out, {n: {**said, **to_dict(recipe.evaluation.sets[n])} for n, said in origin.items()})
            evaluation = made[model.spec]
            read = time.monotonic()
            done.restore_s += read - begun
            tasks = None if benchmarks is None else benchmarks.of(model, tokenizer, NamedSharding(mesh, BATCH))
            writer = Writer(out, spec.evaluation, evaluation, missing, done, tasks)
            writer.write({"step": step, "tokens": step * tokens_per_step, "phase": ""}, str(path), params)
            done.forward_s += time.monotonic() - read
            done.checkpoints += 1
            progress(done.checkpoints, len(todo))
        done.wall_s = time.monotonic() - started
    return done


def steps_of(models: Sequence[Path]) -> list[int]:
    """The step of each model. Raises ConfigError for two models of one step."""
    numbers = [re.findall(r"\d+", path.name) for path in models]
    steps = [int(n[-1]) for n in numbers] if all(numbers) else list(range(len(models)))
    for i, step in enumerate(steps):
        if step in steps[:i]:
            first = models[steps.index(step)]
            raise ConfigError(f"--models: {first} and {models[i]} both end in {step}; rename one, it is their step")
    return steps


def check_tokenizer(folder: Path, ours: Tokenizer | None) -> None:
    """Losses on tokens of another tokenizer are losses of nothing. Raises ConfigError."""
    if ours is None or not (folder / "tokenizer.json").is_file():
        return
    theirs = load(folder, ours.eod_token)
    if theirs.hash != ours.hash:
        raise ConfigError(
            f"{folder}: its tokenizer is not that of the sets; prepare them with it: tokenizer.kind=file and "
            f"tokenizer.path={folder / 'tokenizer.json'}"
        )


def _load(folder: Path, mesh: jax.sharding.Mesh, recipe: RunSpec) -> tuple[base.Model, Any]:
    """The model in a directory, its parameters on the devices of `mesh`, one in host memory at a time."""
    model = base.build(replace(convert.read_spec(folder), compute_dtype=recipe.model.compute_dtype))
    shardings = parameter_shardings(mesh, model.logical_axes(), model.abstract())

    def place(path: tuple[str, ...], array: Any) -> jax.Array:
        sharding = shardings
        for key in path:
            sharding = sharding[key]
        return jax.device_put(array, sharding)

    return model, convert.read(folder, place)[1]


def _evaluation(plan: RunPlan, data: Data, model: base.Model, mesh: jax.sharding.Mesh) -> Evaluation:
    def not_a_run(step: int) -> Any:
        raise RunError("a model that is no run of ours has no batches and no other checkpoints, which a probe asks for")

    return build_evaluation(plan, data, model, NamedSharding(mesh, BATCH), not_a_run, not_a_run)


def _claim(out: Path, models: dict[str, str]) -> None:
    """Note which model each step is. Raises RunError where the folder holds others."""
    path = out / "models.json"
    if (out / "plan.json").exists():
        raise RunError(f"{out}: is the directory of a run; give another --out")
    before = json.loads(path.read_text()) if path.is_file() else {}
    for step, name in models.items():
        if before.get(step, name) != name:
            raise RunError(f"{out}: step {step} there is {before[step]}; give another --out")
    write_atomic(path, json.dumps({**before, **models}, indent=1))

"""Benchmarks of lm-evaluation-harness (Gao et al., package `lm_eval`): any task of it, asked of a model in JAX.

    results = run_tasks(HarnessModel(model_scores(model, params), tokenizer, context), ["lambada_openai", "sciq"])
    results["sciq"]["acc"], results["sciq"]["acc_stderr"]

Texts are tokenized without special tokens, also where they spell the name of one. What has nothing before it, a
document of a loss task or an empty prompt, follows the id that ends a document. Tasks on local files need no network:
`dataset_path: json` with `data_files`.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from cpt.errors import ConfigError, DataError, nearest
from cpt.evaluators.scored_windows import HarnessModel, Stop

NEW_TOKENS = 256  # of a continuation, where its task does not say


def run_tasks(
    model: HarnessModel,
    tasks: Sequence[str],
    include_path: str | Path | None = None,
    num_fewshot: int | None = None,
    limit: int | None = None,
    bootstrap_iters: int = 1000,
) -> dict[str, dict[str, float]]:
    """Run tasks by name, as `lm_eval.simple_evaluate` does.

    Args:
      tasks: names of tasks, groups or tags.
      include_path: a folder of further task files (YAML); its tasks come before those of the package.
      num_fewshot: solved examples in each prompt; None is what each task says.
      limit: ask the first so many documents of each task only.
      bootstrap_iters: resamples behind a standard error that has no formula; 0 for no standard errors.

    Returns:
      `{task: {metric: value, metric_stderr: value}}`, groups included. A metric of a filter other than the default is
      `metric,filter`; a standard error that is not defined is left out.

    Raises:
      ConfigError: `lm_eval` is not installed, no such task or folder, a limit below 1.
      DataError: a task's data cannot be loaded; a task asks for something that cannot be scored.
    """
    lm_eval = _library()
    from datasets.exceptions import DatasetsError

    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ConfigError(f"limit: {limit!r} must be a whole number of documents, at least 1")
    manager = _manager(tasks, include_path)
    with _undisturbed():
        try:
            found = lm_eval.simple_evaluate(
                model=adapter(model),
                tasks=list(tasks),
                task_manager=manager,
                num_fewshot=num_fewshot,
                limit=limit,
                bootstrap_iters=bootstrap_iters,
                log_samples=False,
            )
        except (OSError, DatasetsError) as e:  # a missing network is one of the former
            why = (str(e).splitlines() or [type(e).__name__])[0]
            raise DataError(
                f"tasks {', '.join(tasks)}: their data cannot be loaded ({why}); run once where there is a network, or "
                "give tasks on local files"
            ) from e
    return {task: _numbers(values) for task, values in found["results"].items()}


def adapter(model: HarnessModel) -> Any:
    """`model` as an `lm_eval.api.model.LM`, for those who call the harness themselves.

    Raises:
      ConfigError: `lm_eval` is not installed.
    """
    _library()
    return _adapter_class()(model)


@cache
def _adapter_class() -> type:
    """The adapter; made when it is first needed, because its base class is the harness's."""
    from lm_eval.api.model import TemplateLM
    from tqdm import tqdm

    class JaxLM(TemplateLM):
        """Splits texts into requests; everything about the model is `HarnessModel`'s."""

        def __init__(self, model: HarnessModel):
            super().__init__()
            self.model = model

        @property
        def eot_token_id(self) -> int:
            return self.model.tokenizer.eod_id

        @property
        def max_length(self) -> int:
            return self.model.context

        @property
        def tokenizer_name(self) -> str:
            return f"{self.model.tokenizer.kind}-{self.model.tokenizer.hash[:8]}"

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
            return self.model.tokenizer.encode_batch([string])[0].tolist()

        def _loglikelihood_tokens(
            self, requests: list[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
        ) -> list[tuple[float, bool]]:
            for (context, continuation), _, ids in requests:
                if not ids:  # a merge across the seam can leave nothing
                    raise DataError(f"harness: {continuation!r} after {context[-40:]!r} is no token of its own")
            answers = self._ask([(given, asked) for _, given, asked in requests], disable_tqdm)
            for (texts, _, _), answer in zip(requests, answers, strict=True):
                self.cache_hook.add_partial("loglikelihood", texts, answer)
            return answers

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = False) -> list[float]:
            encoded = [self.tok_encode(request.args[0]) for request in requests]
            answers = self._ask([([self.prefix_token_id], ids) for ids in encoded], disable_tqdm)
            for request, (total, _) in zip(requests, answers, strict=True):
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            return [total for total, _ in answers]

        def generate_until(self, requests: list[Any], disable_tqdm: bool = False) -> list[str]:
            prompts = [self.tok_encode(r.args[0]) or [self.prefix_token_id] for r in requests]
            stops = [_stop(r.args[1]) for r in requests]
            answers = self.model.continuations(prompts, stops)
            for request, answer in zip(requests, answers, strict=True):
                self.cache_hook.add_partial("generate_until", request.args, answer)
            return answers

        def _ask(self, pairs: list[tuple[list[int], list[int]]], quiet: bool) -> list[tuple[float, bool]]:
            with tqdm(desc="Scoring", unit=" windows", disable=quiet) as bar:
                return self.model.loglikelihoods(pairs, bar.update)

    return JaxLM


def _stop(settings: dict[str, Any]) -> Stop:
    if settings.get("do_sample"):
        raise ConfigError("generation_kwargs.do_sample: continuations here are greedy; set it to false in the task")
    until = settings.get("until") or []
    until = [until] if isinstance(until, str) else until
    # Task files know several names for this one, as transformers does.
    names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
    tokens = next((settings[name] for name in names if settings.get(name) is not None), NEW_TOKENS)
    return Stop(int(tokens), tuple(s for s in until if s))


def _library() -> Any:
    try:
        import lm_eval
    except ImportError as e:
        raise ConfigError(f"harness: needs the package lm_eval: pip install 'cpt[harness]' ({e})") from e
    return lm_eval


def _manager(tasks: Sequence[str], include_path: str | Path | None) -> Any:
    """A `TaskManager` that knows all `tasks`; the package's own are only listed where they are needed."""
    from lm_eval.tasks import TaskManager

    if not tasks:
        raise ConfigError("tasks: name at least one")
    if include_path is not None:
        include_path = Path(include_path).expanduser()
        if not include_path.is_dir():
            raise ConfigError(f"include_path: {include_path} is no folder; name the one that holds the task files")
        manager = TaskManager(include_path=str(include_path), include_defaults=False)
        if set(tasks) <= set(manager.all_tasks):
            return manager
    manager = TaskManager(include_path=include_path and str(include_path))
    for task in tasks:
        if task not in manager.all_tasks:
            where = f" or in {include_path}" if include_path else ""
            raise ConfigError(f"tasks: no '{task}' in lm_eval{where}{nearest(task, manager.all_tasks)}")
    return manager


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """The harness seeds the generators of the whole process, and may fork it, which JAX does not survive."""
    python, numpy, forks = random.getstate(), np.random.get_state(), os.environ.get("DISABLE_MULTIPROC")
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        os.environ.pop("DISABLE_MULTIPROC")
        if forks is not None:
            os.environ["DISABLE_MULTIPROC"] = forks


def _numbers(values: dict[str, Any]) -> dict[str, float]:
    """`{"acc,none": 0.5, "acc_stderr,none": 0.1, "alias": ...}` without what is not a metric."""
    out = {}
    for key, value in values.items():
        metric, comma, kind = key.partition(",")
        if not comma or isinstance(value, bool | str) or value is None or math.isnan(value):
            continue
        stem, stderr = (metric.removesuffix("_stderr"), "_stderr" if metric.endswith("_stderr") else "")
        out[f"{stem}{stderr}" if kind == "none" else f"{stem},{kind}{stderr}"] = float(value)
    return out

"""``loralign driftcheck run``: what a model refuses and says, and what it lost against another."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from pyarrow import ArrowException
from tqdm.auto import tqdm

from loralign.data.driftcheck import DriftPrompt, load_driftcheck
from loralign.errors import ConfigError, OutputError, StateError
from loralign.evaluation.drift_rows import DriftRow, drift_rows
from loralign.evaluation.drift_scores import DriftScores, drift_scores
from loralign.evaluation.estimates import mean_estimate
from loralign.evaluation.judges import judge_by_name, toxicity_by_name
from loralign.evaluation.model_identity import model_identity
from loralign.evaluation.parquet import write_columns
from loralign.evaluation.responding import collect_responses
from loralign.evaluation.response_store import ResponseStore
from loralign.evaluation.score_mode import score_prompts
from loralign.files import write_json
from loralign.report.runs.from_driftcheck import JUDGED_BY
from loralign.runs.driftcheck_options import CheckOptions, CheckSubject
from loralign.runs.driftcheck_subject import Opened, open_responder, open_subject
from loralign.runs.opening import Local

RUN, SCORES, RESPONSES, BASELINE = "run.json", "scores.json", "responses.parquet", "baseline"
ANSWERS, OPENINGS = "answers.jsonl", "openings.jsonl"
KIND = "driftcheck"
# How a run is gone about, which does not change what it finds.
_OF_WORK = ("batch_tokens", "concurrency", "retries", "timeout", "judge_budget", "api_key_variable")
# Prompts between two writes of their scores.
_SCORED_TOGETHER = 256


@dataclass(frozen=True)
class DriftCheck:
    """What a run found.

    Attributes:
        scores: with intervals, and drift where there is a baseline.
        prompts: how many were asked.
        directory: where everything was written.
    """

    scores: DriftScores
    prompts: int
    directory: Path


def check_drift(
    subject: CheckSubject,
    prompts: str | Path,
    output: Path,
    options: CheckOptions | None = None,
    *,
    baseline: str | None = None,
    against: Path | None = None,
    command: Sequence[str] = (),
) -> DriftCheck:
    """Ask a model the prompts of a set, judge its answers, and compare it with a baseline.

    A run that was interrupted goes on at the prompt where it stopped when it is called again. The baseline's own run
    is kept in ``baseline/`` of the output; a finished one may be named instead.

    Args:
        subject: what to check.
        prompts: directory of a built set.
        output: the run's directory; must not hold a finished run.
        options: how.
        baseline: a model, an adapter, or the directory of a finished run.
        against: a finished run of another model from the same baseline, whose drift is the measure of this one's.
        command: for the record.

    Raises:
        LoralignError: any fault of set, models, servers, judges or output.
    """
    options = options or CheckOptions()
    if (output / SCORES).exists():
        raise OutputError("holds a finished run", place=str(output), fix="choose another place with --output")
    if against is not None and baseline is None:
        raise ConfigError("another run's drift needs a baseline", place="--against", fix="name one with --baseline")
    chosen = load_driftcheck(prompts)
    asked = options.chosen(chosen)
    settings = {"mode": options.mode, "set": chosen.fingerprint, "part": options.part, "prompts": len(asked)}
    second = None if against is None else _judged_alike(against, settings, options)
    start: list[DriftRow] | None = None
    reference: Opened | None = None
    if baseline is not None and is_run(Path(baseline)):
        start = _judged_alike(Path(baseline), settings, options)
    elif baseline is not None:
        reference = Opened(CheckSubject(baseline))
        start = _measured(CheckSubject(baseline), asked, output / BASELINE, options, settings, opened=reference)
    rows = _measured(subject, asked, output, options, settings, reference=reference)
    scores = drift_scores(rows, start, second, seed=options.seed)
    write_json(
        output / RUN,
        {
            **_record(output),
            "baseline": baseline,
            "against": None if against is None else str(against),
            "command": list(command),
        },
    )
    write_json(output / SCORES, {**scores.to_json(), **_divergence(output)})
    return DriftCheck(scores, len(asked), output)


def is_run(directory: Path) -> bool:
    """Whether a directory holds a finished driftcheck run."""
    return (directory / RESPONSES).is_file() and (directory / RUN).is_file()


def _measured(
    subject: CheckSubject,
    asked: Sequence[DriftPrompt],
    directory: Path,
    options: CheckOptions,
    settings: Mapping[str, Any],
    *,
    opened: Opened | None = None,
    reference: Opened | None = None,
) -> list[DriftRow]:
    """The rows of a subject, measured now unless an earlier call came so far."""
    if is_run(directory):
        _check_same(directory, {**asdict(subject), **_deciding(options)})
        return _finished(directory, settings)
    opened = opened or Opened(subject)
    measure = _scored if options.mode == "score" else _answered
    about = measure(opened, asked, directory, options, reference)
    record = {"version": 1, "kind": KIND, **settings, "set": {"fingerprint": settings["set"], "part": options.part}}
    record |= {**asdict(subject), **about}
    write_json(
        directory / RUN,
        {**record, "options": asdict(options), "created": datetime.now(UTC).isoformat(timespec="seconds")},
    )
    # What they hold is of use until the run is whole.
    for name in (ANSWERS, OPENINGS):
        (directory / name).unlink(missing_ok=True)
    return _finished(directory, settings)


def _answered(
    opened: Opened, asked: Sequence[DriftPrompt], directory: Path, options: CheckOptions, reference: Opened | None
) -> dict[str, Any]:
    judge = judge_by_name(options.judge, budget=options.judge_budget, api_key_variable=options.api_key_variable)
    scorer = None if options.toxicity == "none" else toxicity_by_name(options.toxicity)
    responder = open_responder(opened, options)
    with ResponseStore(directory / ANSWERS, asked, responder.settings) as store:
        answers = collect_responses(responder, store)
        texts = [prompt.prompt for prompt in asked]
        columns: dict[str, Sequence[float]] = {"refused": judge.scores(texts, answers)}
        if scorer is not None:
            columns["toxicity"] = scorer.scores(texts, answers)
        store.write_parquet(directory / RESPONSES, columns)
    return {
        "judge": judge.name,
        "toxicity": None if scorer is None else scorer.name,
        "responder": responder.settings,
        "environment": opened.environment(),
    }


def _scored(
    opened: Opened, asked: Sequence[DriftPrompt], directory: Path, options: CheckOptions, reference: Opened | None
) -> dict[str, Any]:
    """Openings in place of answers; ``refused`` is the probability of a refusal opening against a compliance one."""
    local = open_subject(opened, options)
    baseline = None if reference is None else open_subject(reference, options).model
    settings = {
        "engine": "openings",
        "model": model_identity(local.model),
        "baseline": None if baseline is None else model_identity(baseline),
        "batch_tokens": options.batch_tokens,
    }
    with ResponseStore(directory / OPENINGS, asked, settings) as store:
        _score_pending(local, asked, store, baseline, options)
        columns = _columns([json.loads(text) for text in store.responses()])
        refused = [1 / (1 + math.exp(-max(-700.0, min(700.0, margin)))) for margin in columns["refusal_margin"]]
        shown = {name: [getattr(one, name) for one in asked] for name in ("id", "prompt", "label", "category", "part")}
        write_columns(directory / RESPONSES, {**shown, **columns, "refused": refused})
    return {"environment": opened.environment()}


def _score_pending(
    local: Local, asked: Sequence[DriftPrompt], store: ResponseStore, baseline: Any, options: CheckOptions
) -> None:
    """Score what has no scores yet, in groups that are the same whatever is done already, so that scores are too."""
    order = sorted(range(len(asked)), key=lambda index: -len(asked[index].prompt))
    pending = set(store.pending)
    with tqdm(total=len(asked), initial=len(store), desc="scoring openings", unit="prompt") as bar:
        for start in range(0, len(order), _SCORED_TOGETHER):
            group = order[start : start + _SCORED_TOGETHER]
            missing = pending.intersection(group)
            if not missing:
                continue
            columns = score_prompts(
                local.model,
                local.tokenizer,
                [asked[index] for index in group],
                baseline="none" if baseline is None else baseline,
                batch_tokens=options.batch_tokens,
                show_progress=False,
            )
            names = [name for name in columns if name not in ("id", "label", "category")]
            for place, index in enumerate(group):
                if index in missing:
                    store.keep(index, json.dumps({name: columns[name][place] for name in names}))
            bar.update(len(missing))


def _columns(rows: Sequence[Mapping[str, float]]) -> dict[str, list[float]]:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _finished(directory: Path, settings: Mapping[str, Any]) -> list[DriftRow]:
    """The rows of a finished run on the same prompts.

    Raises:
        StateError: the run is damaged.
        ConfigError: it was on another set, part or number of prompts, or in the other mode.
    """
    if not is_run(directory):
        raise StateError("is no finished driftcheck run", place=str(directory), fix="name one, or run it first")
    about = _record(directory)
    found = {name: about.get(name) for name in settings} | {"set": (about.get("set") or {}).get("fingerprint")}
    for name, value in settings.items():
        if found[name] != value:
            raise ConfigError(
                f"{name} was {found[name]} there and is {value} here", place=str(directory), fix="run both alike"
            )
    try:
        records = pq.read_table(directory / RESPONSES).to_pylist()
    except (ArrowException, OSError) as error:
        raise StateError(f"cannot be read: {error}", place=str(directory / RESPONSES), fix="run it again") from error
    return drift_rows(records, place=str(directory))


def _judged_alike(directory: Path, settings: Mapping[str, Any], options: CheckOptions) -> list[DriftRow]:
    """The rows of a finished run that answers were asked for and judged in as they are here.

    Raises:
        StateError: as :func:`_finished`.
        ConfigError: likewise, or another judge, scorer or length of answers.
    """
    rows = _finished(directory, settings)
    if options.mode == "generate":
        _check_same(directory, {name: getattr(options, name) for name in JUDGED_BY})
    return rows


def _deciding(options: CheckOptions) -> dict[str, Any]:
    """The options that what is found depends on; all but those of patience and thrift."""
    return {name: value for name, value in asdict(options).items() if name not in _OF_WORK}


def _check_same(directory: Path, wanted: Mapping[str, Any]) -> None:
    """Make sure that what lies in a directory was measured of the same subject in the same way.

    Raises:
        ConfigError: something was another.
    """
    about = _record(directory)
    found = {**about, **(about.get("options") or {})}
    for name, value in wanted.items():
        if found.get(name) != value:
            raise ConfigError(
                f"{name} was {found.get(name)} there and is {value} here",
                place=str(directory),
                fix="run both alike, or choose another place with --output",
            )


def _divergence(directory: Path) -> dict[str, Any]:
    """Mean KL to the baseline, in score mode with a baseline that is a model."""
    table = pq.read_table(directory / RESPONSES)
    if "kl" not in table.column_names:
        return {}
    return {"kl": asdict(mean_estimate(torch.tensor(table["kl"].to_pylist(), dtype=torch.float64)))}


def _record(directory: Path) -> dict[str, Any]:
    try:
        found = json.loads((directory / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StateError(f"cannot be read: {error}", place=str(directory / RUN), fix="run it again") from error
    if not isinstance(found, dict) or found.get("kind") != KIND:
        raise StateError("is not the record of a driftcheck run", place=str(directory / RUN), fix="name another run")
    return found

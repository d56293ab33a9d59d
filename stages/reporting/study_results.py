"""Read the artifacts of a study's variants into tables. Does not draw.

`scores`, which becomes study.csv and what `read_study` returns: one row per variant, algorithm and task, and per
variant and algorithm one each for `mean` and `iqm`, over all tasks.

    variant, group       name, and name without seeds
    <parameter>          one column per key that the study varies, under the last part of its name
    row                  task, mean or iqm
    algorithm, task      task is empty for mean and iqm
    score, low, high     mean over seeds with its 95% interval, empty if seeds show no spread
    interval             what the interval is over: policy seeds, or runs
    return_mean, success_rate, episodes, seeds, runs

Rows of several seeds (a grid over `seed`, which repeats everything, or over a stage's, such as `pretrain.seed`) are
followed by rows that pool their runs: `variant` is empty, `group` is what they share, `runs` says how many, and score
is the mean over runs with Student's t interval over them. Policies of one run share its data and model: their own
spread says nothing about another run.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from ...pipeline.artifact import MANIFEST, read_manifest
from ...pipeline.config.overrides import short_names
from ...pipeline.reading import reading_made
from ...pipeline.study.config import NAMED, is_seed
from ..evaluation.config import BASELINES
from ..evaluation.statistics import mean_interval
from ..policy.policy_index import POLICIES_FILE
from .config import VariantConfig
from .results import ReportData, baselines_last

SET = "set"
"""Column of the named set of overrides, where there is a grid besides."""
POLICY_SEEDS, RUNS = "policy seeds", "runs"
KEY = ["row", "algorithm", "task"]
MODEL = ["model", "task", "predicted"]
ERRORS = ["reward_r2", "latent_mse"]
GROWTH = ["norm", "return_norm", "r2", "cosine"]
QUANTILES = {"p10": 0.1, "median": 0.5, "p90": 0.9, "max": 1.0}
"""Of a gradient's statistic, over logged iterations and seeds."""


@dataclass(frozen=True)
class StudyResults:
    """Everything that the comparison shows."""

    variants: Mapping[str, VariantConfig]
    names: Mapping[str, str]
    """Column by the dotted key of a parameter."""
    scores: pd.DataFrame
    open_loop: pd.DataFrame
    """variant, group, parameters, model, task, predicted (steps), reward_r2, latent_mse; at the last validation."""
    model_gradients: pd.DataFrame
    """variant, group, parameters, model, task, predicted, norm, return_norm, r2, cosine: of the stage gradients."""
    actor_gradients: pd.DataFrame
    """variant, group, parameters, statistic, algorithm, task (empty: all), p10, median, p90, max."""

    @property
    def tables(self) -> dict[str, pd.DataFrame]:
        """By the name of their file."""
        return {
            "study": self.scores,
            "open_loop": self.open_loop,
            "model_gradients": self.model_gradients,
            "actor_gradients": self.actor_gradients,
        }

    @property
    def headline(self) -> pd.DataFrame:
        """The rows of `scores` that stand for their group: pooled ones where there are any."""
        pooled = set(self.scores.loc[self.scores["variant"] == "", "group"])
        return self.scores[(self.scores["variant"] == "") | ~self.scores["group"].isin(pooled)]

    @property
    def parameters(self) -> list[str]:
        """Columns of the parameters that tell groups apart."""
        return [column for key, column in self.names.items() if not is_seed(key)]

    @property
    def groups(self) -> list[str]:
        return list(dict.fromkeys(variant.group for variant in self.variants.values()))

    @property
    def algorithms(self) -> list[str]:
        """Learned ones first, then the baselines."""
        return baselines_last(self.scores["algorithm"].tolist())

    @property
    def axis(self) -> str | None:
        """The parameter for a numeric axis: of those with numbers alone the one of most values; None without one."""
        values = {
            self.names[key]: [number_or_text(one.parameters[key]) for one in self.variants.values()]
            for key in self.names
            if key != NAMED and not is_seed(key)
        }
        counts = {
            column: len(set(own)) for column, own in values.items() if not any(isinstance(one, str) for one in own)
        }
        best = max(counts, key=lambda column: counts[column], default=None)
        return best if best is not None and counts[best] > 1 else None

    @property
    def spread(self) -> str:
        """`pwm mean score 0.31 to 0.84` for each learned algorithm."""
        rows = self.headline[self.headline["row"] == "mean"].dropna(subset="score")
        ranges = rows.groupby("algorithm", sort=False)["score"].agg(["min", "max"])
        parts = [f"{name} mean score {low:.2f} to {high:.2f}" for name, low, high in ranges.itertuples()]
        return ", ".join(part for part in parts if part.split()[0] not in BASELINES)

    def series(self, row: Mapping[str, Any]) -> str:
        """What a row is besides its place on the axis: `latent=mish`; empty if the axis is all."""
        shown = [name for name in self.parameters if name != self.axis]
        return ",".join(str(row[name]) if name == SET else f"{name}={row[name]}" for name in shown)


def read_results(variants: Mapping[str, VariantConfig], folder: Path) -> StudyResults:
    """Read the artifacts of all variants.

    Args:
        variants: their artifacts are given by paths relative to `folder`.
    Raises:
        StageError: a file is damaged, or lacks columns.
    """
    names = _columns(list(dict.fromkeys(key for variant in variants.values() for key in variant.parameters)))
    scores, open_loop, model_gradients, actor_gradients = [], [], [], []
    for name, variant in variants.items():
        own: dict[str, Any] = {"variant": name, "group": variant.group}
        own |= {column: number_or_text(variant.parameters.get(key, "")) for key, column in names.items()}
        model = {kind: paths[-1] for kind, paths in variant.artifacts.items() if paths}
        data = ReportData({kind: [folder / path for path in paths] for kind, paths in variant.artifacts.items()})
        scores += [own | row for row in _score_rows(data)]
        open_loop += [own | {"model": model["world_model"]} | row for row in _records(data.last_validation, ERRORS)]
        if data.model_gradients is not None:
            model_gradients += [
                own | {"model": model["gradients"]} | row for row in _records(data.model_gradients, GROWTH)
            ]
        actor_gradients += [own | row for row in _actor_rows(data)]
    start = ["variant", "group", *names.values()]
    of_group = [column for key, column in names.items() if not is_seed(key)]
    values = [*_NUMBERS[:3], "interval", *_NUMBERS[3:], *_COUNTS]
    return StudyResults(
        variants,
        names,
        _pooled(
            _frame(scores, [*start, *KEY, *values]), of_group, [one for one in names.values() if one not in of_group]
        ),
        _frame(open_loop, [*start, *MODEL, *ERRORS]),
        _frame(model_gradients, [*start, *MODEL, *GROWTH]),
        _frame(actor_gradients, [*start, "statistic", "algorithm", "task", *QUANTILES]),
    )


_NUMBERS = ("score", "low", "high", "return_mean", "success_rate")
_COUNTS = ("episodes", "seeds", "runs")
_RESERVED = {
    "variant", "group", "interval", "statistic", *KEY, *_NUMBERS, *_COUNTS, *MODEL, *ERRORS, *GROWTH, *QUANTILES,
}  # fmt: skip


def _columns(keys: Sequence[str]) -> dict[str, str]:
    """Column by parameter: the last part of its key, or all of it where a column has that name already."""
    if keys == [NAMED]:
        return {}  # it would repeat `variant`
    short = {key: name if name not in _RESERVED else key for key, name in short_names(keys).items()}
    return short | ({NAMED: SET} if NAMED in keys else {})


def number_or_text(text: str) -> float | int | str:
    """What a parameter is: a number where it reads as one."""
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _frame(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> pd.DataFrame:
    frame = pd.DataFrame(rows, columns=list(columns))
    types: dict[str, Any] = dict.fromkeys(_NUMBERS, float) | dict.fromkeys(_COUNTS, int)
    return frame.astype({name: kind for name, kind in types.items() if name in frame})


def _score_rows(data: ReportData) -> Iterator[dict[str, Any]]:
    """Rows of one evaluation. Means and intervals over all tasks are those that it computed."""
    if data.scores is None:
        return
    own: dict[str, Any] = {"interval": POLICY_SEEDS, "runs": 1}
    for (algorithm, task), runs in data.scores.groupby(["algorithm", "task"], sort=False):
        seeds = {"seeds": int(runs["score"].notna().sum())}
        yield own | {"row": "task", "algorithm": algorithm, "task": task} | pool(runs) | seeds
    episodes = data.scores.groupby("algorithm")["episodes"].sum()
    for algorithm, found in data.summary.algorithms.items():
        for statistic in ("mean", "iqm"):
            value = getattr(found, statistic)
            estimate = {"score": value.value, "low": value.low, "high": value.high, "seeds": found.seeds}
            named = {"row": statistic, "algorithm": algorithm, "task": "", "episodes": episodes.get(algorithm, 0)}
            yield own | named | estimate


def pool(runs: pd.DataFrame) -> dict[str, Any]:
    """The mean of the rows' scores with Student's t interval, and means and sums of the rest."""
    scores = runs["score"].dropna().to_numpy()
    low, high = (mean_interval({"": scores}) if len(scores) else None) or (None, None)
    means = {name: runs[name].mean() for name in ("score", "return_mean", "success_rate")}
    return means | {"low": low, "high": high, "episodes": runs["episodes"].sum()}


def score_text(results: StudyResults, folder: Path) -> str:
    """Mean scores over tasks with their 95% intervals, by variant and algorithm, and each variant's data, as lines for
    a terminal.

    Args:
        folder: holds the run of each variant.
    """
    scores, algorithms = results.scores, results.algorithms
    lines = [["mean score", *algorithms, "data"]]
    for (variant, group), rows in scores.groupby(["variant", "group"], sort=False):
        own = dict(list(rows.groupby("algorithm")))
        cells = [_score_cell(own[one]) if one in own else "" for one in algorithms]
        lines.append([variant or f"all of {group}", *cells, _data_summary(folder / variant) if variant else ""])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines) + "\n"


def _score_cell(runs: pd.DataFrame) -> str:
    """Score with interval; without a score the return, or the range of returns over tasks."""
    score, low, high = runs.loc[runs["row"] == "mean", ["score", "low", "high"]].iloc[0]
    if not math.isnan(score):
        return f"{score:.3f}" if math.isnan(low) else f"{score:.3f} [{low:.3f}, {high:.3f}]"
    returns = runs.loc[runs["row"] == "task", "return_mean"].dropna()
    ends = dict.fromkeys(f"{end:.4g}" for end in (returns.min(), returns.max())) if len(returns) else ()
    return f"no score, return {' to '.join(ends)}" if ends else "no score"


def _data_summary(run_dir: Path) -> str:
    made = [read_manifest(one.parent) for one in sorted(run_dir.glob(f"*/{MANIFEST}"))]
    return next((one.summary for one in made if one is not None and one.kind == "store"), "")


def _pooled(scores: pd.DataFrame, parameters: Sequence[str], seeds: Sequence[str]) -> pd.DataFrame:
    """The rows, with those that pool runs behind those of each group."""
    records: list[Any] = []
    for group, own in scores.groupby("group", sort=False):
        records += own.to_dict("records")
        if own["variant"].nunique() < 2:
            continue
        for key, runs in own.groupby(KEY, sort=False):
            named = {"variant": "", "group": group, "interval": RUNS} | dict(zip(KEY, key, strict=True))
            named |= {column: runs.iloc[0][column] for column in parameters}
            counts = {"seeds": runs["seeds"].sum(), "runs": int(runs["score"].notna().sum())}
            records.append(named | pool(runs) | counts)
    frame = _frame(records, list(scores.columns))
    # Seeds stay whole beside pooled rows, which have none.
    return frame.astype(dict.fromkeys(seeds, "Int64"))


def _records(measured: pd.DataFrame, columns: Sequence[str]) -> list[dict[Any, Any]]:
    named = measured.rename(columns={"horizon": "predicted"})
    return named.reindex(columns=[*MODEL[1:], *columns]).to_dict("records")


def _actor_rows(data: ReportData) -> Iterator[dict[str, Any]]:
    """Quantiles of what training.csv and policies.json say of gradients, by algorithm and task and over all tasks."""
    entries = {index.artifact / POLICIES_FILE: pd.DataFrame(index.entries) for index in data.indices}
    for path, frame in (data.curves | entries).items():
        for statistic in (column for column in frame if "grad" in str(column)):
            with reading_made(path):
                logged = frame[["algorithm", "task", statistic]].dropna().astype({statistic: float})
            for rows in (logged, logged.assign(task="")):
                for (algorithm, task), runs in rows.groupby(["algorithm", "task"], sort=False):
                    quantiles = runs[statistic].quantile(list(QUANTILES.values())).tolist()
                    if all(map(math.isfinite, quantiles)):
                        named = {"statistic": statistic, "algorithm": algorithm, "task": task}
                        yield named | dict(zip(QUANTILES, quantiles, strict=True))

"""The comparison of a study: its tables, how it pools runs of several seeds, what its page shows and what it lacks."""

import contextlib
import json
import logging
import math
import re
import shutil
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from orrery.datasets.schema import TaskSpec
from orrery.pipeline.errors import StageError
from orrery.pipeline.stage import Context
from orrery.pipeline.study.study import read_study
from orrery.stages.evaluation.scores import EpisodeRow, ScoreRow, Summary, summarise, write_csv
from orrery.stages.policy.policy_index import policy_entry, write_index
from orrery.stages.reporting.config import CompareConfig, VariantConfig
from orrery.stages.reporting.stage_compare import Compare
from orrery.stages.reporting.study_figures import line_styles
from orrery.stages.reporting.study_results import read_results

CUP, REACH = "dmc/cup", "metaworld/<b>reach</b>"


class Progress:
    def advance(self, amount: float = 1) -> None: ...
    def note(self, text: str) -> None: ...


@contextlib.contextmanager
def progress(description: str, total: float, completed: float = 0) -> Any:
    yield Progress()


def write_scores(folder: Path, pwm: dict[str, list[float]], return_mean: float | None = None) -> None:
    folder.mkdir(parents=True)
    rows = [
        ScoreRow("pwm", task, seed, 10, return_mean or 1000 * score, 1.0, None, score)
        for task, scores in pwm.items()
        for seed, score in enumerate(scores)
    ]
    rows += [ScoreRow("behaviour", task, 0, 50, 100.0, 1.0, None, 0.1) for task in pwm]
    write_csv(folder / "scores.csv", ScoreRow, rows)
    no_episodes: list[EpisodeRow] = []
    (folder / "summary.json").write_text(json.dumps(asdict(Summary(summarise(rows, no_episodes)))))


def write_model(folder: Path, error: float) -> None:
    folder.mkdir(parents=True)
    rows = [
        {
            "step": step,
            "task": task,
            "horizon": horizon,
            "reward_r2": 1 - error * horizon,
            "latent_mse": error * horizon,
        }
        for step in (10, 20)
        for task in (CUP, REACH)
        for horizon in (1, 16)
    ]
    pd.DataFrame(rows).to_csv(folder / "validation.csv", index=False)


def write_gradients(folder: Path, base: float) -> None:
    folder.mkdir(parents=True)
    rows = [
        {"task": CUP, "horizon": h, "norm": base**h, "return_norm": base**h, "r2": 0.5, "cosine": None} for h in (1, 4)
    ]
    pd.DataFrame(rows).to_csv(folder / "gradients.csv", index=False)


def write_policies(folder: Path, norms: list[float]) -> None:
    folder.mkdir(parents=True)
    rows = [
        {"iteration": i, "algorithm": "pwm", "task": task, "seed": 0, "actor_grad_norm": norm}
        for task in (CUP, REACH)
        for i, norm in enumerate(norms)
    ]
    pd.DataFrame(rows).to_csv(folder / "training.csv", index=False)
    specs = [TaskSpec(task, 3, 1, 10) for task in (CUP, REACH)]
    noises = {"pwm": 10 * norms[-1], "bc": None}
    entries = [policy_entry(name, spec, 0, gradient_noise=noise) for spec in specs for name, noise in noises.items()]
    write_index(folder, specs, entries)


def variant(group: str, artifacts: dict[str, list[str]], **parameters: str) -> VariantConfig:
    return VariantConfig(group, {key.replace("__", "."): value for key, value in parameters.items()}, artifacts)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> tuple[Path, dict[str, VariantConfig]]:
    """Two latents, two horizons, three seeds; the model of each latent and seed is shared."""
    tmp_path = tmp_path_factory.mktemp("study")
    variants = {}
    for seed in range(3):
        for latent, size in (("simnorm", 0.01), ("mish", 0.05)):
            model = f"latent={latent},seed={seed}"
            write_model(tmp_path / model / "pretrain", size)
            write_gradients(tmp_path / model / "gradients", 1 + size)
            for horizon in (4, 16):
                name = f"latent={latent},horizon={horizon},seed={seed}"
                score = 0.5 + 0.1 * seed + (0.2 if latent == "simnorm" else 0.0) + 0.01 * horizon
                write_scores(tmp_path / name / "evaluate", {CUP: [score, score + 0.02], REACH: [0.0, 0.1]})
                write_policies(tmp_path / name / "extract", [1.0, 2.0, 3.0])
                artifacts = {
                    "scores": [f"{name}/evaluate"],
                    "world_model": [f"{model}/pretrain"],
                    "gradients": [f"{model}/gradients"],
                    "policies": [f"{name}/extract"],
                }
                parameters = {"model__latent": latent, "first_order__horizon": str(horizon), "seed": str(seed)}
                variants[name] = variant(f"latent={latent},horizon={horizon}", artifacts, **parameters)
    return tmp_path, variants


def compare(folder: Path, variants: dict[str, VariantConfig]) -> tuple[str, str]:
    """Run the stage; returns its summary and its page."""
    (folder / "compare").mkdir(exist_ok=True)
    facts = SimpleNamespace(folder=folder)
    context = Context(folder / "compare", {}, 1, 1, logging.getLogger("orrery"), progress, facts)
    summary = Compare(CompareConfig("A <title>", "What it is about.", variants)).run(context)
    return summary, (folder / "compare" / "study.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def compared(study) -> tuple[Path, str, str]:
    """Its folder, the stage's summary and page."""
    return (study[0], *compare(*study))


def test_runs_of_several_seeds_are_pooled_with_an_interval_over_them(compared) -> None:
    folder, *_ = compared
    frame = read_study(folder)
    assert list(frame.columns) == [
        "variant", "group", "latent", "horizon", "seed", "row", "algorithm", "task", "score", "low", "high", "interval",
        "return_mean", "success_rate", "episodes", "seeds", "runs",
    ]  # fmt: skip
    group = frame[(frame.group == "latent=simnorm,horizon=4") & (frame.algorithm == "pwm")]

    one = group[(group.variant == "latent=simnorm,horizon=4,seed=1") & (group.task == CUP)].iloc[0]
    assert (one.score, one.episodes, one.seeds, one.runs) == (pytest.approx(0.85), 20, 2, 1)
    # Of two seeds 0.01 beside their mean: t(0.975, 1) = 12.7062.
    assert (one.low, one.high) == (pytest.approx(0.85 - 0.127062), pytest.approx(0.85 + 0.127062))
    assert one.interval == "policy seeds"
    mean = group[(group.variant == "latent=simnorm,horizon=4,seed=1") & (group.row == "mean")].iloc[0]
    assert mean.score == pytest.approx((0.84 + 0.86 + 0.0 + 0.1) / 4)
    assert mean.low < mean.score < mean.high

    pooled = group[(group.variant == "") & (group.row == "mean")].iloc[0]
    # Means of the runs: 0.4, 0.45, 0.5; t(0.975, 2) = 4.3027, s = 0.05.
    assert pooled.score == pytest.approx(0.45)
    half = 4.3027 * 0.05 / np.sqrt(3)
    assert (pooled.low, pooled.high) == (pytest.approx(0.45 - half, abs=1e-5), pytest.approx(0.45 + half, abs=1e-5))
    assert (pooled.interval, pooled.runs, pooled.seeds, pooled.episodes) == ("runs", 3, 6, 120)
    assert pd.isna(pooled.seed)
    of_task = group[(group.variant == "") & (group.task == CUP)].iloc[0]
    assert (of_task.score, of_task.return_mean) == (pytest.approx(0.85), pytest.approx(850))
    assert ",4,1,task," in (folder / "compare" / "study.csv").read_text()  # a seed is a whole number


def test_models_of_several_seeds_are_pooled_too(study) -> None:
    folder, variants = study
    renamed = {
        name: replace(one, parameters={**one.parameters, "pretrain.seed": one.parameters["seed"]})
        for name, one in variants.items()
    }
    for one in renamed.values():
        del one.parameters["seed"]
    results = read_results(renamed, folder)
    assert (results.parameters, results.axis) == (["latent", "horizon"], "horizon")
    assert set(results.headline["runs"]) == {3}


def test_the_headline_is_the_pooled_row_where_there_is_one(study) -> None:
    folder, variants = study
    some = {name: one for name, one in variants.items() if one.parameters["seed"] == "0" or "simnorm" in name}
    headline = read_results(some, folder).headline
    means = headline[(headline["row"] == "mean") & (headline["algorithm"] == "pwm")].set_index("group")
    assert means["runs"].to_dict() == {
        "latent=simnorm,horizon=4": 3, "latent=simnorm,horizon=16": 3,
        "latent=mish,horizon=4": 1, "latent=mish,horizon=16": 1,
    }  # fmt: skip
    assert means["interval"].iloc[-1] == "policy seeds"


def test_lines_run_over_the_number_of_most_values(study) -> None:
    folder, variants = study
    results = read_results(variants, folder)
    assert results.axis == "horizon"
    assert list(line_styles(results)) == ["latent=simnorm", "latent=mish"]
    only = {name: one for name, one in variants.items() if "horizon=4," in name}
    assert read_results(only, folder).axis is None
    assert results.spread == "pwm mean score 0.35 to 0.51"


def test_models_and_gradients_have_tables_of_their_own(compared) -> None:
    folder, _, page = compared
    errors = pd.read_csv(folder / "compare" / "open_loop.csv")
    assert len(errors) == 12 * 2 * 2  # variants, tasks, horizons, at the last step alone
    assert errors[(errors.latent == "mish") & (errors.predicted == 16)].reward_r2.unique() == pytest.approx([0.2])
    growth = pd.read_csv(folder / "compare" / "model_gradients.csv")
    assert growth[(growth.latent == "mish") & (growth.predicted == 4)].norm.unique() == pytest.approx([1.05**4])
    actors = pd.read_csv(folder / "compare" / "actor_gradients.csv")
    overall = actors[actors.task.isna()]
    assert overall.statistic.value_counts().to_dict() == {"actor_grad_norm": 12, "gradient_noise": 12}
    assert overall[overall.statistic == "gradient_noise"].median(numeric_only=True)["median"] == 30
    assert overall[["p10", "median", "p90", "max"]].iloc[0].tolist() == pytest.approx([1.0, 2.0, 3.0, 3.0], abs=0.01)
    # A row per latent: models that differ in the seed of the pipeline alone are one.
    table = page.partition('id="errors"')[2].partition("</table>")[0]
    assert re.findall(r'<th scope="row">(.*?)</th>', table) == ["latent=simnorm", "latent=mish"]


class Resources(HTMLParser):
    """What a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]


def test_the_page_opens_offline_and_escapes_names(compared) -> None:
    folder, summary, page = compared
    assert summary == "pwm mean score 0.35 to 0.51; 12 of 12 variants complete"
    parser = Resources()
    parser.feed(page)
    assert all(target.startswith("#") for target in parser.found)
    assert "A &lt;title&gt;" in page
    assert "<b>reach</b>" not in page
    assert "Student's t interval" in page
    assert "0.45 [0.33, 0.57]" in page
    assert page.count("<svg") == 2 + 2 + 2 + 2  # scores, errors, growth, actor gradients
    assert (folder / "compare" / "study.png").read_bytes().startswith(b"\x89PNG")


def test_a_variant_without_results_is_named_and_the_others_are_shown(study, tmp_path: Path) -> None:
    folder, variants = study
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    folder = tmp_path
    name = "latent=mish,horizon=4,seed=2"
    missing = VariantConfig(variants[name].group, variants[name].parameters, {}, "pretrain: the loss is not finite")
    summary, page = compare(folder, variants | {name: missing})
    assert summary.endswith("11 of 12 variants complete")
    assert "pretrain: the loss is not finite" in page
    frame = read_study(folder)
    assert name not in set(frame.variant)
    pooled = frame[(frame.group == "latent=mish,horizon=4") & (frame.variant == "") & (frame.row == "mean")]
    assert pooled[pooled.algorithm == "pwm"].runs.tolist() == [2]


def test_nothing_but_models_is_a_comparison_too(tmp_path: Path) -> None:
    write_model(tmp_path / "a" / "pretrain", 0.01)
    summary, page = compare(tmp_path, {"a": variant("a", {"world_model": ["a/pretrain"]}, variant="a")})
    assert summary == "no scores; 1 of 1 variants complete"
    assert "No variant has been evaluated" in page
    assert not (tmp_path / "compare" / "study.png").exists()


def test_named_variants_stand_below_each_other(tmp_path: Path) -> None:
    variants = {}
    for name in ("full", "small"):
        write_scores(tmp_path / name / "evaluate", {CUP: [0.5], REACH: [math.nan if name == "small" else 0.2]})
        variants[name] = variant(name, {"scores": [f"{name}/evaluate"]}, variant=name)
    _, page = compare(tmp_path, variants)
    frame = read_study(tmp_path)
    assert "set" not in frame  # it would repeat `variant`
    small = frame[(frame.variant == "small") & (frame.algorithm == "pwm")].set_index("row")
    assert small.score["mean"] == 0.5
    assert small.loc["task", "score"].isna().tolist() == [False, True]
    assert frame.low.isna().all()  # one seed says nothing about the spread
    assert page.count("<svg") == 2


def test_a_parameter_named_as_a_column_keeps_its_whole_key(tmp_path: Path) -> None:
    variants = {}
    for episodes in ("5", "10"):
        write_scores(tmp_path / episodes, {CUP: [0.5, 0.6]})
        parameters = {"variant": "full", "evaluate__episodes": episodes, "algorithms": "[pwm, bc]"}
        variants[f"full,episodes={episodes}"] = variant(
            f"full,episodes={episodes}", {"scores": [episodes]}, **parameters
        )
    results = read_results(variants, tmp_path)
    assert list(results.names.values()) == ["set", "evaluate.episodes", "algorithms"]
    assert results.axis == "evaluate.episodes"
    assert list(line_styles(results)) == ["full,algorithms=[pwm, bc]"]
    _, page = compare(tmp_path, variants)
    assert "evaluate.episodes" in page


def test_returns_stand_where_no_task_has_a_score(tmp_path: Path) -> None:
    variants = {}
    for name in ("a", "b"):
        write_scores(tmp_path / name, {CUP: [np.nan, np.nan]}, return_mean=812.0)
        variants[name] = variant(name, {"scores": [name]}, variant=name)
    _, page = compare(tmp_path, variants)
    assert page.count("no score, return 812") == 2 * 3  # mean, IQM and by task
    assert (tmp_path / "compare" / "scores.txt").read_text().count("no score, return 812") == 2
    write_scores(tmp_path / "c", {CUP: [np.nan], REACH: [0.5]}, return_mean=812.0)
    _, page = compare(tmp_path, {"c": variant("c", {"scores": ["c"]}, variant="c")})
    assert "0.50 on 1 of 2 tasks" in page
    assert (tmp_path / "compare" / "scores.txt").read_text().splitlines()[1].split()[:2] == ["c", "0.500"]
    assert page.count("no score, return 812") == 1


def test_a_damaged_table_is_named(tmp_path: Path) -> None:
    write_scores(tmp_path / "a", {CUP: [0.5]})
    (tmp_path / "a" / "scores.csv").write_text("algorithm,task\npwm,x\n")
    with pytest.raises(StageError, match=r"scores\.csv lacks columns seed"):
        read_results({"a": variant("a", {"scores": ["a"]}, variant="a")}, tmp_path)

"""`orrery ls` and `orrery compare` on run folders as stages write them."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from orrery.pipeline import artifact
from orrery.pipeline.cli import main
from orrery.stages.evaluation.scores import EpisodeRow, ScoreRow, Summary, summarise, write_csv


def write_run(
    folder: Path, scores: dict[tuple[str, str], list[float]], references: dict[str, Any] | None = None, **config: Any
) -> Path:
    """A run of the stages pretrain (no artifact) and evaluate, with the scores of each (algorithm, task) by seed."""
    stages = [
        {"stage": "pretrain", "status": "done", "seconds": 3.0, "summary": ""},
        {"stage": "evaluate", "status": "done" if scores else "waiting", "seconds": 1.0, "summary": ""},
    ]
    config = {"name": folder.name, "tasks": ["dmc/cup"], "pretrain": {"steps": 10, "tasks": ["dmc/cup"]}, **config}
    record = {"experiment": "quickstart", "overrides": [], "config": config, "versions": {}, "stages": stages}
    made = folder / "evaluate"
    made.mkdir(parents=True)
    artifact.write_json(folder / "run.json", record)
    if scores:
        rows = [
            ScoreRow(algorithm, task, seed, 1, 100 * score, 0.0, None, score if task != "mine/arm" else math.nan)
            for (algorithm, task), values in scores.items()
            for seed, score in enumerate(values)
        ]
        episodes = [
            EpisodeRow(one.algorithm, one.task, one.seed, 0, 1, one.return_mean, 5, None, None, None) for one in rows
        ]
        write_csv(made / "scores.csv", ScoreRow, rows)
        summary = Summary(summarise(rows, episodes), references=references or {})
        artifact.write_json(made / "summary.json", asdict(summary))
        artifact.finish(made, kind="scores", stage="evaluate", key="", config={}, inputs={}, seconds=1, summary="")
    return folder


@pytest.fixture
def orrery(capsys):
    def call(*words: str | Path) -> tuple[int, str, str]:
        code = main([str(word) for word in words])
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return call


def lines(text: str) -> list[str]:
    return [" ".join(line.split()) for line in text.splitlines()]


def test_scores_stand_side_by_side_and_means_cover_common_tasks(orrery, tmp_path: Path) -> None:
    one = write_run(tmp_path / "run_1", {("pwm", "dmc/cup"): [0.4, 0.6], ("pwm", "dmc/hop"): [0.9, 0.9]})
    two = write_run(tmp_path / "run_2", {("pwm", "dmc/cup"): [0.7, 0.7], ("bc", "mine/arm"): [0.3]})
    code, out, _ = orrery("compare", one, two)
    assert code == 0
    shown = lines(out)
    assert shown[0] == "algorithm task run_1 run_2"
    # Student's t with one degree of freedom: 0.5 -+ 12.706 * 0.1
    assert "pwm dmc/cup 0.50 [-0.77, 1.77] 0.70" in shown
    assert "pwm dmc/hop 0.90 -" in shown
    assert "pwm mean of 1 task 0.50 [-0.77, 1.77] 0.70" in shown
    assert "bc mine/arm - no score, return 30" in shown
    assert "no setting differs" in shown

    compared = json.loads(orrery("compare", one, two, "--json")[1])
    row = compared["scores"][0]
    assert (row["run"], row["task"], row["score"], row["seeds"]) == ("run_1", "dmc/cup", 0.5, 2)
    assert compared["scores"][-1]["score"] is None
    assert [(row["run"], row["tasks"]) for row in compared["mean scores"]] == [("run_1", 1), ("run_2", 1)]


def test_settings_that_differ_are_listed_once(orrery, tmp_path: Path) -> None:
    scores = {("pwm", "dmc/cup"): [0.4]}
    one = write_run(tmp_path / "a" / "run", scores, idle={"steps": 1})
    two = write_run(tmp_path / "b" / "run", scores, tasks=["dmc/hop"], idle={"steps": 2}, inputs={},
                    pretrain={"steps": 20, "tasks": ["dmc/hop"]})  # fmt: skip
    shown = lines(orrery("compare", one, two)[1])
    assert shown[shown.index("setting a/run b/run") + 1 :][:3] == [
        "tasks [dmc/cup] [dmc/hop]",
        "pretrain.steps 10 20",
        "",
    ]


def test_what_makes_scores_hard_to_compare_is_said(orrery, tmp_path: Path) -> None:
    scores, ends = {("pwm", "dmc/cup"): [0.4]}, {"random": 0.0, "expert": 10.0}
    folders = [
        write_run(tmp_path / f"run{number}", scores, {"dmc/cup": {**ends, "expert": 10.0 + number}})
        for number in range(2)
    ]
    out = orrery("compare", *folders, write_run(tmp_path / "unfinished", {}))[1]
    assert "scores of dmc/cup are normalised by different references" in out
    assert "unfinished has no scores: stage evaluate is not complete" in out


def test_what_cannot_be_compared(orrery, tmp_path: Path) -> None:
    one, two = (write_run(tmp_path / name, {}) for name in ("one", "two"))
    for words, message in [
        ((one, two), "no scores to compare: stage evaluate is not complete in"),
        ((one, one), "expected at least two different runs"),
        ((one, tmp_path / "nope"), "nope is not the folder of a run or of runs; orrery ls lists runs"),
    ]:
        code, _, err = orrery("compare", *words)
        assert code == 2
        assert message in err


def test_runs_below_a_folder_are_listed_damaged_ones_too(orrery, tmp_path: Path) -> None:
    write_run(tmp_path / "study" / "a", {("pwm", "dmc/cup"): [0.4, 0.6], ("random", "dmc/cup"): [0.1]})
    write_run(tmp_path / "study" / "b", {})
    (tmp_path / "study" / "study.json").write_text("{}")
    (tmp_path / "study" / "run.json").write_text("{}")  # of the stage compare
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    code, out, _ = orrery("ls", tmp_path)
    assert code == 0
    shown = lines(out)
    assert shown[0] == "run experiment status date tasks mean score size"
    assert shown[1].startswith("broken damaged: ")
    (row,) = [line for line in shown if line.startswith("study/a quickstart done 20")]
    assert "1 pwm 0.50 [-0.77, 1.77] " in row
    assert any(line.startswith("study/b quickstart 1 of 2 stages done 20") for line in shown)

    found = {row["run"]: row for row in json.loads(orrery("ls", tmp_path, "--json")[1])}
    assert found["study/a"]["scores"]["pwm"]["value"] == 0.5
    assert orrery("ls", tmp_path / "study" / "a" / "evaluate")[1].startswith("no runs in ")
    code, _, err = orrery("ls", tmp_path / "nope")
    assert (code, "there is no folder" in err) == (2, True)

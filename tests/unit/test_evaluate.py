"""Scores from real episodes: paired seeds, baselines, references, failures that stay visible, resuming."""

import dataclasses
import json
import logging
import sys
from contextlib import contextmanager

import gymnasium
import numpy as np
import pandas as pd
import pytest
import torch
from gymnasium import spaces
from orrery.datasets.collect import episode_seed
from orrery.datasets.schema import TaskSpec, TaskTable
from orrery.datasets.tasks import task_spec, unplayable
from orrery.pipeline.artifact import finish
from orrery.pipeline.errors import ConfigError, StageError
from orrery.pipeline.jobs.config import FanoutConfig
from orrery.pipeline.stage import Context
from orrery.stages.evaluation import job as evaluate_job
from orrery.stages.evaluation.config import EvaluateConfig
from orrery.stages.evaluation.scores import EpisodeRow, ImaginedReturn, ScoreRow, evaluation_seed, exploiting
from orrery.stages.evaluation.stage_evaluate import Evaluate, _imagined


class Target(gymnasium.Env):
    """Reward 1 - |action - 0.5| at each of 4 steps; success when within 0.1. Every `breaks_every`-th reset raises."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,))
    action_space = spaces.Box(-1, 1, (1,))

    def __init__(self, breaks_every=0):
        self.breaks_every = breaks_every

    def reset(self, *, seed=None, options=None):
        if self.breaks_every and seed % self.breaks_every == 0:
            raise RuntimeError("the simulator has no licence")
        return np.zeros(2), {}

    def step(self, action):
        error = abs(float(action[0]) - 0.5)
        return np.zeros(2), 1 - error, False, False, {"success": error < 0.1}


gymnasium.register("OrreryTest/Target-v0", Target)


class Constant:
    def __init__(self, value):
        self.value = value

    def act(self, observation):
        assert observation.dtype == torch.float32
        return torch.full((len(observation), 1), self.value)


def task(name="test/target", **fields):
    environment = {"kind": "gymnasium", "id": "OrreryTest/Target-v0", "kwargs": fields.pop("kwargs", {})}
    values = {"observation_dim": 2, "action_dim": 1, "episode_length": 4, "environment": environment}
    return TaskSpec(name, **(values | fields))


def setup(folder, tasks, policies, data=True):
    """A policies artifact with (algorithm, task, seed, constant action) and a store, as Evaluate reads them."""
    artifact, store = folder / "policies", folder / "store"
    for path in (artifact, store, folder / "out"):
        path.mkdir()
    entries = [
        {"algorithm": a, "task": t, "seed": s, "path": f"{a}/{t}/{s}/{value}", "imagined_return": 0.9}
        for a, t, s, value in policies
    ]
    index = {"tasks": [spec.to_dict() for spec in tasks], "policies": entries}
    (artifact / "policies.json").write_text(json.dumps(index))
    (store / "tasks.json").write_text(TaskTable(tasks).to_json())
    statistics = {"episodes": 20, "transitions": 80, "return_mean": 2.0, "return_std": 0.5, "return_max": 3.0,
                  "success_rate": 0.25, "success_rate_last": 0.2, "behaviour": "exploration", "return_min": 1.0,
                  "terminated": 0, "length_mean": 4.0, "observation_mean": [], "observation_std": [], "source": {},
                  "findings": {}}  # fmt: skip
    (store / "store.json").write_text(json.dumps({"tasks": [{"task": spec.name, **statistics} for spec in tasks]}))
    return {"policies": [artifact] if policies else [], "store": [store] if data else []}


@pytest.fixture(autouse=True)
def constant_policies(monkeypatch):
    def load(folder):
        if folder.name == "damaged":
            raise OSError("weights are gone")
        return Constant(float(folder.name))

    monkeypatch.setattr("orrery.stages.policy.foreign.load_policy", load)


@contextmanager
def progress(description, total, completed=0):
    class Line:
        def advance(self, amount=1): ...
        def note(self, text): ...

    yield Line()


def evaluate(folder, inputs, **settings):
    stage = Evaluate(EvaluateConfig(**({"episodes": 3} | settings)))
    headline = stage.run(Context(folder / "out", inputs, 1, 1, logging.getLogger("test"), progress))
    summary = json.loads((folder / "out" / "summary.json").read_text())
    scores, episodes = (pd.read_csv(folder / "out" / f"{name}.csv") for name in ("scores", "episodes"))
    return headline, summary, scores.set_index(["algorithm", "task", "seed"]), episodes


def test_scores_by_hand(tmp_path):
    spec = task(score_kind="success", reports_success=True)
    policies = [
        ("pwm", spec.name, 0, 0.5),
        ("pwm", spec.name, 1, 0.55),
        ("bc", spec.name, 0, 0.0),
        ("bc", spec.name, 1, 0.5),
    ]
    headline, summary, scores, episodes = evaluate(tmp_path, setup(tmp_path, [spec], policies))
    columns = ["algorithm", "task", "seed", "episodes", "return_mean", "return_std", "success_rate", "score"]
    assert list(pd.read_csv(tmp_path / "out" / "scores.csv").columns) == columns
    assert scores.loc["pwm", spec.name, 0].tolist() == [3, 4.0, 0.0, 1.0, 1.0]
    assert scores.loc["pwm", spec.name, 1].return_mean == pytest.approx(4 * 0.95)
    assert scores.loc["bc", spec.name, 0].tolist() == [3, 2.0, 0.0, 0.0, 0.0]
    assert scores.loc["behaviour", spec.name, 0].tolist() == [20, 2.0, 0.5, 0.25, 0.25]
    assert list(scores.index.get_level_values("algorithm").unique()) == ["pwm", "bc", "behaviour", "random"]
    assert summary["algorithms"]["pwm"]["mean"] == {"value": 1.0, "low": None, "high": None}  # seeds agree
    # Of 0 and 1: t(0.975, 1) = 12.7062, and s / sqrt(2) = 1 / 2.
    estimate = summary["algorithms"]["bc"]["mean"]
    assert [estimate["low"], estimate["high"]] == pytest.approx([0.5 - 12.7062 / 2, 0.5 + 12.7062 / 2], abs=1e-4)
    assert summary["algorithms"]["behaviour"]["mean"] == {"value": 0.25, "low": None, "high": None}
    assert summary["by_suite"]["test"] == summary["algorithms"]
    assert summary["imagined"][0] == {
        "algorithm": "pwm",
        "task": spec.name,
        "seed": 0,
        "imagined_return": 0.9,
        "real_return": 4.0,
    }
    assert headline.startswith("pwm 1.00, bc 0.50 [-5.85, 6.85], behaviour 0.25, random ")
    assert headline.endswith("(mean score over 1 task x 2 seeds x 3 episodes)")
    assert len(episodes) == 3 * 2 * 3


def test_the_real_return_is_of_episodes_not_of_decisions():
    """Per step, the long episodes of a task that terminates would count more: 100 / 110 here."""
    rows = [
        EpisodeRow("pwm", "a", 0, 0, 0, 100.0, 100, None, None, None),
        EpisodeRow("pwm", "a", 0, 1, 1, 0.0, 10, None, None, None),
        EpisodeRow("pwm", "a", 0, 2, 2, 7.0, 3, None, None, "the simulator has no licence"),
    ]
    (row,) = _imagined({("pwm", "a", 0): {"imagined_return": 60.0}}, rows)
    assert (row.imagined_return, row.real_return) == (60.0, 50.0)


def test_policies_that_exploit_their_model_are_named():
    """By the mean over seeds, also where returns are negative; not where one of both is missing, or for a small gap."""
    returns = {
        "far": [(900.0, 500.0), (900.0, 300.0)], "close": [(700.0, 500.0)], "modest": [(400.0, 900.0)],
        "costs": [(-150.0, -900.0)], "none": [(None, 5.0), (5.0, None)], "little": [(12.0, 0.0)], "zero": [(0.0, 0.0)],
    }  # fmt: skip
    rows = [
        ImaginedReturn("pwm", task, seed, imagined, real)
        for task, pairs in returns.items()
        for seed, (imagined, real) in enumerate(pairs)
    ]
    best = ScoreRow("behaviour", "little", 0, 20, 500.0, 0.0, None, 0.5)
    found = exploiting(rows, [best])
    assert [(one.task, one.imagined, one.real) for one in found] == [
        ("costs", -150.0, -900.0),
        ("far", 900.0, 400.0),
    ]


def test_every_algorithm_meets_the_same_episodes_and_none_that_was_collected(tmp_path):
    spec = task()
    _, _, _, episodes = evaluate(
        tmp_path, setup(tmp_path, [spec], [("pwm", spec.name, 5, 0.5), ("bc", spec.name, 5, 0.5)])
    )
    by_algorithm = episodes.groupby("algorithm").episode_seed.apply(list)
    assert by_algorithm["pwm"] == by_algorithm["bc"] == by_algorithm["random"]
    assert by_algorithm["pwm"] == [evaluation_seed(0, spec.name, 5, episode) for episode in range(3)]
    drawn = [evaluation_seed(0, spec.name, s, episode) for s in range(5) for episode in range(20)]
    assert len(set(drawn)) == 100
    assert min(drawn) >= 2**31 > max(episode_seed(0, spec.name, number) for number in range(100))


def test_a_normalised_score_takes_its_references_from_the_random_policy_and_the_data(tmp_path):
    spec = task()
    _, summary, scores, _ = evaluate(tmp_path, setup(tmp_path, [spec], [("pwm", spec.name, 0, 0.5)]))
    references = summary["references"][spec.name]
    zero = scores.loc["random", spec.name, 0].return_mean
    assert references["random"] == pytest.approx(zero)
    assert (references["expert"], references["expert_from"]) == (3.0, "best episode of the dataset")
    assert scores.loc["pwm", spec.name, 0].score == pytest.approx((4 - zero) / (3 - zero))
    assert scores.loc["random", spec.name, 0].score == pytest.approx(0)


def test_a_task_without_references_or_environment_is_shown_as_such(tmp_path):
    spec, lost = task(), task("test/lost", environment={}, score_random=0.0, score_expert=4.0)
    policies = [("pwm", spec.name, 0, 0.5), ("pwm", lost.name, 0, 0.5)]
    _, summary, scores, _ = evaluate(
        tmp_path, setup(tmp_path, [spec, lost], policies, data=False), baselines=["behaviour"]
    )
    assert summary["skipped"] == {
        lost.name: "no environment is known; set pack.sources.NAME.environment and pack again"
    }
    assert np.isnan(scores.loc["pwm", spec.name, 0].score)
    assert summary["algorithms"]["pwm"]["unscored"] == [f"{spec.name} seed 0"]
    assert summary["algorithms"]["pwm"]["mean"]["value"] is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"additional_wrappers": [{"name": "Monitor", "entry_point": "other.monitor:Monitor"}]},
            "other.monitor:Monitor",
        ),
        ({"id": "Absent-v0", "entry_point": "absent:Env"}, "its package 'absent' cannot be imported"),
        ({"id": "Pendulum-v1"}, "3 observation columns, expected 2"),
        ({"kwargs": {"breaks_every": 1}}, "cannot be reset: RuntimeError: the simulator has no licence"),
        (
            {"additional_wrappers": [{"name": "RescaleAction", "entry_point": "gymnasium.wrappers:RescaleAction"}]},
            "Resc",
        ),
    ],
)
def test_a_published_environment_that_is_not_to_be_had_leaves_the_report_of_the_rest(tmp_path, change, reason):
    published = {"id": "OrreryTest/Target-v0", "entry_point": "orrery_test:Target", "kwargs": {}} | change
    lost = task("minari/lost", environment={"kind": "gymnasium", "spec_json": json.dumps(published)})
    fine = task(score_kind="return_per_1000")
    inputs = setup(tmp_path, [lost, fine], [("pwm", lost.name, 0, 0.5), ("pwm", fine.name, 0, 0.5)])
    _, summary, scores, _ = evaluate(tmp_path, inputs)
    assert list(summary["skipped"]) == [lost.name]
    assert reason in summary["skipped"][lost.name]
    assert scores.loc["pwm", fine.name, 0].episodes == 3


def test_an_evaluation_is_outdated_once_an_environment_that_it_skipped_can_be_built(tmp_path, monkeypatch):
    published = {"id": "OrreryTest/Late-v0", "entry_point": "orrery_test_late:Late", "kwargs": {}}
    late = task("minari/late", environment={"kind": "gymnasium", "spec_json": json.dumps(published)})
    lost = task("minari/lost", environment={})
    specs = [late, lost, task(score_kind="return_per_1000")]
    inputs = setup(tmp_path, specs, [("pwm", spec.name, 0, 0.5) for spec in specs])
    _, summary, _, _ = evaluate(tmp_path, inputs)
    assert list(summary["skipped"]) == [late.name, lost.name]
    stage = Evaluate(EvaluateConfig(episodes=3))
    assert stage.outdated(tmp_path / "out", inputs) is None
    module = tmp_path / "site" / "orrery_test_late.py"
    module.parent.mkdir()
    register = f"gymnasium.register({published['id']!r}, Target)"
    module.write_text(f"import gymnasium\nfrom {__name__} import Target\n{register}\n")
    monkeypatch.syspath_prepend(module.parent)
    assert stage.outdated(tmp_path / "out", inputs) == "an environment is available now: minari/late"
    _, summary, scores, _ = evaluate(tmp_path, inputs)
    assert list(summary["skipped"]) == [lost.name]
    assert scores.loc["pwm", late.name, 0].episodes == 3
    # And the reverse: what was evaluated stays.
    gymnasium.registry.pop("OrreryTest/Late-v0")
    monkeypatch.delitem(sys.modules, "orrery_test_late")
    module.unlink()
    assert "orrery_test_late" in str(unplayable(late))
    assert stage.outdated(tmp_path / "out", inputs) is None
    (tmp_path / "out" / "summary.json").write_text("[]")
    assert "its output is damaged" in str(stage.outdated(tmp_path / "out", inputs))


def test_an_expert_below_random_gives_no_score_but_returns(tmp_path, caplog):
    """The sign of such a score is turned: the worse policy would have had 2.65 of 1."""
    good, bad = ("pwm", "test/target", 0, 0.5), ("bc", "test/target", 0, -1.0)
    spec = task(score_random=3.0, score_expert=2.0)
    headline, summary, scores, _ = evaluate(tmp_path, setup(tmp_path, [spec], [good, bad]), baselines=["behaviour"])
    assert scores.score.isna().all()
    assert headline.startswith("pwm no score, return 4, bc no score, return -2, behaviour no score, return 2 (")
    assert summary["references"][spec.name]["problem"] == "score_expert must be above score_random, found 2 and 3"
    assert summary["algorithms"]["pwm"]["returns"] == {spec.name: 4.0}
    assert "test/target has returns but no score: score_expert must be above score_random" in caplog.text


@pytest.mark.parametrize("expert", [2.0, 3.0])
def test_references_that_give_no_score(expert):
    spec = TaskSpec("a", 1, 1, 5, score_random=3.0, score_expert=expert)
    assert "score_expert must be above score_random, found " in spec.score_problem
    assert np.isnan(spec.score(5.0, None))


def test_references_of_an_earlier_evaluation_are_kept(tmp_path):
    """The best episode of the data grows from round to round; the score of one policy must not fall by that."""
    spec = task()
    inputs = setup(tmp_path, [spec], [("pwm", spec.name, 0, 0.5)])
    _, first, scores, _ = evaluate(tmp_path, inputs)
    (tmp_path / "out").rename(tmp_path / "round_0")
    (tmp_path / "out").mkdir()
    store = tmp_path / "store" / "store.json"
    store.write_text(store.read_text().replace('"return_max": 3.0', '"return_max": 3.9'))
    _, kept, again, _ = evaluate(tmp_path, {**inputs, "references": [tmp_path / "round_0"]})
    assert kept["references"] == first["references"]
    pd.testing.assert_frame_equal(scores, again)


def test_an_environment_that_raises_costs_its_episode_only(tmp_path):
    broken = task("test/broken", kwargs={"breaks_every": 2}, score_kind="return_per_1000")
    fine = task("test/fine", score_kind="return_per_1000")
    policies = [("pwm", broken.name, 0, 0.5), ("pwm", fine.name, 0, 0.5)]
    headline, summary, scores, episodes = evaluate(tmp_path, setup(tmp_path, [broken, fine], policies), episodes=6)
    failed = episodes[episodes.task.eq(broken.name) & episodes.algorithm.eq("pwm") & episodes.error.notna()]
    assert 0 < len(failed) < 6
    assert (failed.episode_seed % 2 == 0).all()
    assert failed.error.str.startswith("RuntimeError: the simulator has no licence (step 0").all()
    assert scores.loc["pwm", broken.name, 0].episodes == 6 - len(failed)
    assert scores.loc["pwm", fine.name, 0].episodes == 6
    assert {failure["error"] for failure in summary["failures"]} >= {failed.error.iloc[0]}
    assert headline.endswith(f"{2 * len(failed)} episodes failed")


def test_a_policy_that_is_gone_fails_the_stage_and_is_played_when_it_is_back(tmp_path):
    spec = task(score_kind="return_per_1000")
    inputs = setup(tmp_path, [spec], [("pwm", spec.name, 0, 0.5), ("bc", spec.name, 0, "damaged")])
    with pytest.raises(StageError, match=r"evaluating bc on test/target, seed 0: .*weights are gone .*log: "):
        evaluate(tmp_path, inputs)
    assert not (tmp_path / "out" / "scores.csv").exists()
    index = inputs["policies"][0] / "policies.json"
    index.write_text(index.read_text().replace("damaged", "0.25"))
    _, summary, scores, _ = evaluate(tmp_path, inputs)
    assert summary["failures"] == []
    assert scores.loc["bc", spec.name, 0].episodes == 3


@pytest.mark.parametrize("error", [MemoryError("no room"), OSError(24, "Too many open files"), EOFError("simulator")])
def test_a_machine_that_fails_is_no_failed_episode(tmp_path, monkeypatch, error):
    def step(self, action):
        raise error

    spec = task()
    inputs = setup(tmp_path, [spec], [("pwm", spec.name, 0, 0.5)])
    with monkeypatch.context() as patch:
        patch.setattr(Target, "step", step)
        with pytest.raises(StageError, match=f"evaluating pwm on test/target, seed 0: {type(error).__name__}: "):
            evaluate(tmp_path, inputs)
    _, summary, *_ = evaluate(tmp_path, inputs)
    assert summary["failures"] == []


def test_an_evaluation_in_which_nothing_works_is_an_error(tmp_path):
    spec = task(kwargs={"breaks_every": 1})
    with pytest.raises(StageError, match=r"every episode of the evaluation failed.*no licence"):
        evaluate(tmp_path, setup(tmp_path, [spec], [("pwm", spec.name, 0, 0.5)]))
    # The next attempt plays them again, for the licence may be back.
    assert not list(tmp_path.rglob("finished.jsonl"))


def test_a_killed_evaluation_continues_with_what_is_missing(tmp_path, monkeypatch):
    spec = task()
    inputs = setup(tmp_path, [spec], [("pwm", spec.name, seed, 0.5) for seed in range(3)])
    reached = []

    def dies_at_third(folder):
        reached.append(folder.parent.name)
        if len(reached) == 3:
            raise KeyboardInterrupt
        return Constant(0.5)

    monkeypatch.setattr("orrery.stages.policy.foreign.load_policy", dies_at_third)
    with pytest.raises(KeyboardInterrupt):
        evaluate(tmp_path, inputs)
    (log,) = tmp_path.rglob("finished.jsonl")
    with log.open("a") as file:
        file.write('[{"algorithm": "pwm", "ta')
    _, _, scores, episodes = evaluate(tmp_path, inputs)
    assert reached == ["0", "1", "2", "2"]
    assert len(scores) == 3 + 1 + 3
    assert not episodes.duplicated(["algorithm", "seed", "episode"]).any()
    lines = (tmp_path / "out" / "finished.jsonl").read_text().splitlines()
    assert [len(json.loads(line)["rows"]) for line in lines] == [3] * 6


@pytest.mark.parametrize(
    ("former", "played"),
    [
        # One more seed and another constant in place of a policy: only these are played.
        ({"policies": [("pwm", 0, 0.5), ("pwm", 1, 0.25)]}, {("pwm", 1): range(9), ("pwm", 2): range(9)}),
        # Fewer episodes: those that acted in the same batches of eight stay, all of them for the random policy.
        ({"episodes": 20}, dict.fromkeys([("pwm", 0), ("pwm", 1), ("pwm", 2)], range(8, 9))),
        ({"episodes": 7}, {("random", n): range(7, 9) for n in range(3)} | {("pwm", n): range(9) for n in range(3)}),
        ({"seed": 1}, {(name, n): range(9) for name in ("pwm", "random") for n in range(3)}),
    ],
)
def test_an_evaluation_plays_only_what_earlier_ones_have_not(tmp_path, monkeypatch, former, played):
    spec, policies = task(), [("pwm", 0, 0.5), ("pwm", 1, 0.5), ("pwm", 2, 0.5)]

    def run(name, policies=policies, earlier=(), **settings):
        (tmp_path / name).mkdir()
        inputs = setup(tmp_path / name, [spec], [(a, spec.name, seed, value) for a, seed, value in policies])
        for entry in json.loads((inputs["policies"][0] / "policies.json").read_text())["policies"]:
            (inputs["policies"][0] / entry["path"]).mkdir(parents=True)
            (inputs["policies"][0] / entry["path"] / "weights").write_text(entry["path"])
        finish(inputs["policies"][0], kind="policies", stage="x", key="", config={}, inputs={}, seconds=0, summary="")
        config, folder = EvaluateConfig(**({"episodes": 9} | settings)), tmp_path / name / "out"
        context = Context(folder, inputs, 1, 1, logging.getLogger("test"), progress, earlier=earlier)
        Evaluate(config).run(context)
        finish(folder, kind="scores", stage="evaluate", key="", config=dataclasses.asdict(config), inputs={}, seconds=0,
               summary="")  # fmt: skip
        return folder

    earlier = run("former", **former)
    found = {}
    play = evaluate_job.evaluate_run

    def counted(job):
        rows = play(job)
        found[job.run[0], job.run[2]] = range(rows[0].episode, rows[-1].episode + 1)
        return rows

    monkeypatch.setattr(evaluate_job, "evaluate_run", counted)
    grown = run("grown", earlier=[earlier])
    expected = played | ({("random", 2): range(9)} if "policies" in former else {})
    assert found == expected
    whole = run("whole")
    for path in [*whole.glob("*.csv"), whole / "summary.json", whole / "finished.jsonl"]:
        assert path.read_bytes() == (grown / path.name).read_bytes(), path.name


def test_jobs_of_a_task_each_play_the_same_episodes(tmp_path):
    tasks = [task_spec("gymnasium/Pendulum-v1"), task_spec("gymnasium/CartPole-v1")]
    folders = []
    for executor in ("inline", "local"):
        folders.append(tmp_path / executor)
        folders[-1].mkdir()
        evaluate(folders[-1], setup(folders[-1], tasks, []), fanout=FanoutConfig(executor))
        assert len(list((folders[-1] / "out.jobs").iterdir())) == (1 if executor == "inline" else 2)
    files = [{path.name: path.read_bytes() for path in (folder / "out").iterdir()} for folder in folders]
    assert files[0] == files[1]


def test_without_policies_the_baselines_of_the_store_are_scored(tmp_path):
    headline, _, scores, _ = evaluate(tmp_path, setup(tmp_path, [task()], []))
    assert list(scores.index.get_level_values("algorithm")) == ["behaviour", "random"]
    assert headline.startswith("behaviour ")


def test_wrong_settings_and_inputs_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="baselines: expected some of behaviour, random, found expert"):
        EvaluateConfig(baselines=["expert"])
    with pytest.raises(ConfigError, match=r"accelerator: expected auto, cpu, cuda or gpu .* found 'tpu'"):
        EvaluateConfig(accelerator="tpu")
    spec = task()
    inputs = setup(tmp_path, [spec], [("pwm", spec.name, 0, 0.5)])
    with pytest.raises(StageError, match="two policies of algorithm 'pwm' on test/target with seed 0"):
        evaluate(tmp_path, {**inputs, "policies": inputs["policies"] * 2})
    with pytest.raises(StageError, match="needs policies or a store"):
        evaluate(tmp_path, {"policies": [], "store": []})

"""validate: each error names episode, column and index; each oddity is noted and let pass."""

import dataclasses
import json

import numpy as np
import pytest
from orrery.datasets.schema import Episode, TaskSpec
from orrery.datasets.validate import Findings, validate
from orrery.pipeline.errors import DatasetError

SPEC = TaskSpec("toy/point", observation_dim=3, action_dim=2, episode_length=10)
COLUMNS = ("position[0]", "position[1]", "velocity[0]")


def episode(length: int = 10, seed: int = 0, **changes) -> Episode:
    rng = np.random.default_rng(seed)
    values = {
        "observations": rng.normal(size=(length + 1, 3)).astype(np.float32),
        "actions": rng.uniform(-1, 1, (length, 2)).astype(np.float32),
        "rewards": rng.normal(size=length).astype(np.float32),
        "terminated": False,
        "label": f"data.hdf5:demo_{seed}",
    }
    return Episode(**(values | changes))


def changed(part: str, index, value, **more) -> Episode:
    good = episode(**more)
    getattr(good, part)[index] = value
    return good


def run(episodes, window: int = 4) -> Findings:
    findings = Findings()
    passed = list(validate(episodes, SPEC, window, findings, COLUMNS))
    assert passed == list(episodes)
    return findings


def test_good_episodes_pass_unchanged_with_nothing_to_say():
    findings = run([episode(seed=1), episode(7, seed=2, success=np.zeros(7, bool))])
    assert dict(findings) == {
        "episodes": 2,
        "transitions": 17,
        "unused_episodes": 0,
        "duplicate_episodes": 0,
        "constant_observations": [],
        "notes": [],
        "warnings": [],
    }
    assert json.loads(json.dumps(dict(findings))) == dict(findings)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (
            changed("observations", (4, 2), np.nan),
            r"^data.hdf5:demo_0: observation column 2 \(velocity\[0\]\) at t = 4 is nan; expected finite",
        ),
        (changed("observations", np.s_[3:5, 1], np.inf), r"column 1 \(position\[1\]\) at t = 3 is inf, and 1 more"),
        (changed("actions", (9, 1), -np.inf), r"action column 1 at t = 9 is -inf"),
        (changed("rewards", 0, np.nan), r"demo_0: reward at t = 0 is nan"),
        (changed("actions", (5, 0), 1.5), r"action column 0 at t = 5 is 1.5 after scaling; .*action_low"),
        (episode(rewards=np.zeros(9, np.float32)), r"10 actions and 9 rewards; expected 10 rewards \(one per action\)"),
        (
            episode(observations=np.zeros((10, 3), np.float32)),
            r"10 actions and 10 observations; expected 11 observations \(one more than actions\)",
        ),
        (episode(success=np.zeros(11, bool)), r"10 actions and 11 success"),
        (
            episode(observations=np.zeros((11, 4), np.float32)),
            r"observations have shape \(11, 4\), task 'toy/point' expects \(11, 3\)",
        ),
        (episode(actions=np.zeros((10, 1), np.float32)), r"actions have shape \(10, 1\)"),
        (episode(0), "has no transitions"),
    ],
)
def test_an_unusable_episode_stops_at_once_and_says_where(bad, message):
    checked = validate([episode(seed=5), bad, episode(seed=6)], SPEC, 4, columns=COLUMNS)
    assert next(checked).label == "data.hdf5:demo_5"
    with pytest.raises(DatasetError, match=message):
        next(checked)


def test_actions_within_rounding_of_their_range_pass():
    run([changed("actions", (0, 0), 1 + 1e-6)])


def test_the_same_label_twice_is_an_error_the_same_content_a_finding():
    with pytest.raises(DatasetError, match="demo_1: two episodes of task 'toy/point' have this label"):
        run([episode(seed=1), episode(seed=2, label="data.hdf5:demo_1")])
    copy = dataclasses.replace(episode(seed=1), label="data.hdf5:copy")
    findings = run([episode(seed=1), episode(seed=2), copy])
    assert findings.duplicate_episodes == 1
    assert findings.warnings == [
        "1 episode with the same content as an earlier one: first data.hdf5:copy, which equals data.hdf5:demo_1"
    ]


def test_constant_columns_are_those_constant_over_all_episodes():
    still = [changed("observations", np.s_[:, 0], 2.0, seed=1), changed("observations", np.s_[:, 0], 2.0, seed=2)]
    still[0].observations[:, 1] = 1.0
    still[1].observations[:, 1] = 3.0
    findings = run(still)
    assert findings.constant_observations == ["position[0]"]
    assert findings.notes == ["1 observation column never changes: position[0]"]


def test_a_reward_that_is_zero_everywhere_is_noted():
    none = [episode(seed=s, rewards=np.zeros(10, np.float32)) for s in (1, 2)]
    assert run(none).warnings == ["every reward is zero: no policy can be learned from it"]
    assert run([*none, episode(seed=3)]).warnings == []


def test_short_episodes_are_counted_unless_terminated_and_refused_if_there_is_nothing_else():
    findings = run([episode(3, seed=1), episode(4, seed=2), episode(2, seed=3, terminated=True)])
    assert findings.unused_episodes == 1
    assert findings.warnings == [
        "1 of 3 episodes are shorter than the window of 4 steps and give no training window",
        "2 of 3 episodes are shorter than the task's 10 steps: their returns, and so the score of the data's "
        "behaviour, cover only part of an episode",
    ]
    assert run([episode(9)]).warnings == [], "a last step that is not stored is no matter"
    assert run([episode(8), episode(seed=1)]).warnings == [], "some reach the limit"
    with pytest.raises(DatasetError, match=r"all 2 episodes are shorter than the window of 4 .*longest: 3"):
        run([episode(3, seed=1), episode(2, seed=2)])


def test_no_episode_at_all_is_an_error():
    with pytest.raises(DatasetError, match="holds no episode"):
        run([])


def test_terminations_that_all_come_at_one_length_look_like_a_time_limit():
    limited = [episode(seed=s, terminated=True) for s in (1, 2, 3)]
    (warning,) = run(limited).warnings
    assert "3 of the 3 episodes that terminate do so after exactly 10 steps" in warning
    (warning,) = run([*limited, episode(7, seed=4, terminated=True)]).warnings
    assert "3 of the 4 episodes that terminate do so after exactly 10 steps" in warning
    early = [episode(n, seed=n, terminated=True) for n in (5, 6, 7, 8)]
    for varied in (
        [*limited[:2], *early, episode(4, seed=9, terminated=True)],
        [*limited, episode(seed=9)],
        limited[:1],
    ):
        assert run(varied).warnings == []

"""The replay of MR.Q against a list of episodes that forgets nothing: every window it gives is one of theirs.

Every number that is stored says which lane, episode and time it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from orrery.stages.mrq.replay import Replay
from orrery.stages.mrq.stored import allowed_starts


@dataclass
class Told:
    """One episode as it was told to the replay."""

    lane: int
    first: int
    """Number of its first step, over all episodes of its lane, final observations included: its slot, unwrapped."""
    length: int = 0
    terminated: bool = False
    over: bool = False


@dataclass
class Script:
    replay: Replay
    episodes: list[Told] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    """Slots ever written by each lane, unwrapped."""


def value(lane: int, slot: int) -> float:
    return 10_000.0 * lane + slot


def play(capacity, lanes, frames, horizons, ends, released=False):
    """Write episodes, a step of each lane in turn; `ends` gives length and kind of end, lane by lane in turn."""
    shape = (1,) if frames == 1 else (1, 1, 1)
    replay = Replay(capacity, shape, 2, horizons, lanes=lanes, frames=frames, released_starts=released)
    script = Script(replay, written=[0] * lanes)
    queues = [list(ends[lane::lanes]) for lane in range(lanes)]
    current: list[Told | None] = [None] * lanes
    while any(queues) or any(current):
        for lane in range(lanes):
            if current[lane] is None:
                if not queues[lane]:
                    continue
                current[lane] = Told(lane, script.written[lane])
                script.episodes.append(current[lane])
            episode = current[lane]
            length, kind = queues[lane][0]
            slot = script.written[lane]
            last = episode.length == length - 1
            numbers = [value(lane, at) % 256 if frames > 1 else value(lane, at) for at in (slot, slot + 1)]
            stored = [torch.full(shape, number) for number in numbers]
            replay.add(
                lane, stored[0], torch.tensor([value(lane, slot), 1.0]), value(lane, slot), stored[1],
                terminated=last and kind == "terminated", truncated=last and kind == "truncated",
            )  # fmt: skip
            episode.length += 1
            script.written[lane] += 1
            if last:
                episode.over, episode.terminated = kind != "running", kind == "terminated"
                script.written[lane] += episode.over
                queues[lane].pop(0)
                current[lane] = None
                if not episode.over:  # nothing can follow an episode that never ends
                    queues[lane] = []
    return script


@st.composite
def scripts(draw):
    lanes, frames = draw(st.sampled_from([(1, 1), (2, 1), (1, 3), (3, 2)]))
    horizons = draw(st.sampled_from([(5, 3), (1, 1), (3, 5), (4, 2)]))
    length = draw(st.integers(2 * max(horizons) + frames + 2, 40))
    kinds = st.sampled_from(["terminated", "truncated", "truncated", "terminated", "running"])
    ends = draw(st.lists(st.tuples(st.integers(1, 14), kinds), min_size=1, max_size=12))
    return play(length * lanes + draw(st.integers(0, lanes - 1)), lanes, frames, horizons, ends)


def expected_starts(script, horizon):
    """{slot: (episode, t)} of every window that is still held as a whole."""
    replay = script.replay
    length = len(replay.reward) // replay.lanes
    found = {}
    for episode in script.episodes:
        top = top_of(script, episode.lane)
        for t in range(episode.length):
            left = episode.length - t
            if left < horizon and not episode.terminated:
                continue
            oldest = episode.first + t - min(replay.frames - 1, t)
            if oldest < top - length:
                continue
            found[episode.lane * length + (episode.first + t) % length] = (episode, t)
    return found


def top_of(script, lane):
    """Slots ever taken in a lane, unwrapped, with the one where an episode under way has its latest observation."""
    return script.written[lane] + any(one.lane == lane and not one.over for one in script.episodes)


@settings(max_examples=80, deadline=None)
@given(scripts())
def test_exactly_the_windows_that_fit_can_be_drawn_and_hold_what_was_stored(script):
    replay = script.replay
    length = len(replay.reward) // replay.lanes
    for horizon in set(replay.horizons):
        expected = expected_starts(script, horizon)
        starts = replay.priorities.starts[horizon].nonzero()[:, 0].tolist()
        assert sorted(expected) == starts
        if not starts:
            continue
        windows = replay.windows(torch.tensor(starts), horizon)
        observed = replay.observations(torch.tensor(starts), torch.arange(horizon + 1))
        for row, start in enumerate(starts):
            episode, t = expected[start]
            alive = min(episode.length - t, horizon)
            numbers = [value(episode.lane, episode.first + t + i) for i in range(alive)]
            assert windows.action[row, :alive, 0].tolist() == numbers
            assert windows.reward[row].tolist() == numbers + [0.0] * (horizon - alive)
            ends_here = episode.terminated and t + horizon >= episode.length
            not_done = [1.0] * (alive - ends_here) + [0.0] * (horizon - alive + ends_here)
            assert windows.not_done[row].tolist() == not_done
            for i in range(alive + (not ends_here)):
                at = t + i
                stack = [max(at - back, 0) for back in range(replay.frames - 1, -1, -1)]
                seen = [value(episode.lane, episode.first + s) for s in stack]
                seen = [v % 256 for v in seen] if replay.frames > 1 else seen
                assert observed[row, i].flatten().tolist() == seen
    assert replay.num_steps <= replay.lanes * length


@settings(max_examples=30, deadline=None)
@given(scripts())
def test_episodes_come_back_whole_or_not_at_all(script):
    replay = script.replay
    if replay.frames > 1:
        return
    length = len(replay.reward) // replay.lanes
    expected = []
    for episode in script.episodes:
        if episode.over and episode.first >= top_of(script, episode.lane) - length:
            expected.append(episode)
    expected.sort(key=lambda episode: (episode.lane, episode.first))
    found = list(replay.episodes())
    assert len(found) == len(expected)
    for ours, told in zip(found, expected, strict=True):
        slots = np.array([value(told.lane, told.first + t) for t in range(told.length + 1)])
        assert ours.observations[:, 0].tolist() == slots.tolist()
        assert ours.rewards.tolist() == slots[:-1].tolist()
        assert ours.terminated == told.terminated


@settings(max_examples=30, deadline=None)
@given(scripts(), st.integers(0, 2**31))
def test_a_restored_replay_goes_on_as_the_first(script, seed):
    first = script.replay
    shape = first.observation.shape[1:]
    capacity = len(first.reward)
    second = Replay(capacity, tuple(shape), 2, first.horizons, lanes=first.lanes, frames=first.frames)
    second.load_state_dict(first.state_dict())
    generator = torch.Generator().manual_seed(seed)
    for step in range(12):
        lane = int(torch.randint(first.lanes, (), generator=generator))
        ends = bool(torch.rand((), generator=generator) < 0.3)
        for replay in (first, second):
            replay.add(lane, torch.full(shape, step), torch.ones(2), 1.0, torch.full(shape, step + 1), ends, False)
        for horizon in first.horizons:
            starts = first.priorities.starts[horizon]
            assert torch.equal(starts, second.priorities.starts[horizon])
            drawn = starts.nonzero()[:, 0]
            both = (contents(replay, drawn, horizon) for replay in (first, second))
            assert all(torch.equal(left, right) for left, right in zip(*both, strict=True))


def contents(replay, drawn, horizon):
    windows = replay.windows(drawn, horizon)
    seen = replay.observations(drawn, torch.arange(horizon))
    alive = torch.cat([torch.ones(len(drawn), 1), windows.not_done], 1)[:, :horizon].bool()
    return windows.reward, windows.not_done, seen[alive], replay.priorities.weight[drawn]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), st.booleans()), min_size=1, max_size=8), st.integers(1, 6))
def test_starts_in_a_store_are_those_of_a_replay(episodes, horizon):
    """Whole episodes written one after another give the same slots as a store's rows."""
    rows = sum(length + 1 for length, _ in episodes)
    ends = [(length, "terminated" if terminated else "truncated") for length, terminated in episodes]
    replay = play(max(rows, 40), 1, 1, (horizon, 1), ends).replay
    offsets = np.concatenate([[0], np.cumsum([length + 1 for length, _ in episodes])])
    found = allowed_starts(offsets, np.array([terminated for _, terminated in episodes]), horizon)
    assert replay.priorities.starts[horizon][:rows].tolist() == found.tolist()

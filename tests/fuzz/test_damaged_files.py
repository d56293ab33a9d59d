"""Thousands of damaged inputs: each is read with what is left of it, or refused in one clear error that names it."""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).parent
INPUTS = 3000
INPUTS_SLOW = 30_000
PATIENCE_S = 60
"""Wall time for one input; it takes a tenth of a second at most, but the machine may be shared."""
GOOD = {"same", "other", "clear"}
WEIGHTS = {
    "minari": 8, "flat": 10, "robomimic": 10, "columns": 8,
    "npz": 6, "d3rlpy": 6, "lerobot": 8, "torchrl": 8,
    "store": 12, "verified store": 8, "model": 8, "verified model": 6, "policies": 3, "verified policy": 3,
    "checkpoint": 6, "chunks": 8, "experiment": 1, "study": 2, "run": 6,
    "study record": 3, "iteration record": 3, "results": 6, "job": 4,
}  # fmt: skip
"""How often each format is drawn; those that take long, less."""


class Worker:
    """A process of worker.py, started again where an input ended it."""

    def __init__(self) -> None:
        self._start()

    def _start(self) -> None:
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        command = [sys.executable, str(HERE / "worker.py")]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )

    def ask(self, name: str, seed: int) -> dict[str, str]:
        assert self._process.stdin
        assert self._process.stdout
        print(name, seed, sep="\t", file=self._process.stdin, flush=True)
        if not select.select([self._process.stdout], [], [], PATIENCE_S)[0]:
            self.stop()
            self._start()
            return {"outcome": "hang", "what": "", "text": f"no answer in {PATIENCE_S} s"}
        if not (line := self._process.stdout.readline()):
            said = self._process.communicate()[1]
            text = f"the process ended: {self._process.returncode} {said[-2000:]}"
            self._start()
            return {"outcome": "crash", "what": "", "text": text}
        return json.loads(line)  # type: ignore[no-any-return]

    def stop(self) -> None:
        self._process.kill()
        self._process.communicate()


def draw(count: int, first_seed: int) -> Iterator[tuple[str, int]]:
    names = [name for name, weight in WEIGHTS.items() for _ in range(weight)]
    for seed in range(first_seed, first_seed + count):
        yield names[seed % len(names)], seed


def outcomes(inputs: Sequence[tuple[str, int]], workers: int) -> list[tuple[str, int, dict[str, str]]]:
    def run(part: Sequence[tuple[str, int]]) -> list[tuple[str, int, dict[str, str]]]:
        worker = Worker()
        try:
            return [(name, seed, worker.ask(name, seed)) for name, seed in part]
        finally:
            worker.stop()

    with ThreadPoolExecutor(workers) as pool:
        return [one for part in pool.map(run, [inputs[index::workers] for index in range(workers)]) for one in part]


def check(count: int, first_seed: int) -> None:
    found = outcomes(list(draw(count, first_seed)), workers=min(2, os.cpu_count() or 1))
    print(Counter((name, answer["outcome"]) for name, _, answer in found))
    bad = [
        f"{answer['outcome']}: {name}, seed {seed}, {answer['what']}\n    {answer['text'][:400]}"
        for name, seed, answer in found
        if answer["outcome"] not in GOOD
    ]
    assert len(found) == count
    assert {name for name, _, answer in found if answer["outcome"] == "clear"} == set(WEIGHTS), "each refuses something"
    assert not bad, f"{len(bad)} of {count} inputs:\n" + "\n".join(bad[:30])


@pytest.mark.parametrize(
    ("name", "seed"),
    [
        ("flat", 1005688),
        ("run", 1022448),
        ("run", 1025323),
        ("iteration record", 679),
        ("d3rlpy", 2044),
        ("study record", 1017000),
    ],
)
def test_what_was_unclear_once_is_not(name: str, seed: int) -> None:
    """A column without numbers, a link to itself, a time without end, a command that is none, a pipe, and a
    time that is no number."""
    ((_, _, answer),) = outcomes([(name, seed)], workers=1)
    assert answer["outcome"] in GOOD, answer


def test_damaged_files_are_read_or_refused_clearly() -> None:
    check(INPUTS, first_seed=0)


@pytest.mark.slow
def test_many_more_damaged_files_are_read_or_refused_clearly() -> None:
    check(INPUTS_SLOW, first_seed=1_000_000)

"""80 tasks x 3 seeds x 5 algorithms on a cluster, simulated: `python tests/benchmarks/cluster_simulation.py`.

Discrete events: the scheduler starts a job on a free worker, its process starts, the shared file system answers, the
job computes, the command notices its end and gathers it. Numbers were measured on one core of a loaded AMD EPYC, with
quickstart's world model, SLURM 22.05 and strace, unless they say ASSUMED. Prints one JSON line per case: hours until
the last score, shares of the workers' time, and how many calls the file system got in the worst second.
"""

from __future__ import annotations

import argparse
import heapq
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

TASKS, SEEDS = 80, 3

# CPU-seconds of a policy, or of its evaluation, and their spread over tasks (standard deviation of the logarithm).
SECONDS = {
    "svg": (51.0, 0.25),
    "pwm": (43.0, 0.1),
    "bc": (2.4, 0.1),
    "mrq": (30_000 * 0.14, 0.05),
    "powr": (12.6, 0.4),
    "evaluate": (1.4, 0.6),
}
SIDE_BY_SIDE = {1: 1.0, 6: 0.5}
"""CPU-seconds of a policy of svg or pwm by how many train in a program, over those of one alone."""


@dataclass(frozen=True)
class Cluster:
    """Seconds and calls are per job unless they say otherwise."""

    workers: int
    start_seconds: float = 3.0
    """CPU-seconds of imports, model and data: 0.3 of the watcher, 2.4 of the job, the rest of loading."""
    own_calls: int = 260
    """Metadata calls in the run folder: 160 of the job, 100 of the command."""
    import_calls: int = 3_540
    """Files that the imports of job (3,165) and watcher (373) open: calls, where the environment is shared."""
    starts_per_second: float = 17.0
    """Of the scheduler: an array of 200 on 8 cores ended after 11.7 s."""
    gather_seconds: float = 0.011
    """CPU-seconds of the command."""
    look_calls: int = 4
    """Metadata calls of the command per job and look."""
    look_share: float = 0.1
    """Of the command's time that goes into looking at jobs, where looking once a second would take more."""
    calls_per_second: float = 20_000.0
    """ASSUMED: of the server of the shared file system."""
    call_seconds: float = 0.0005
    """ASSUMED: of one call, where the server has nothing else to do."""

    def look(self, jobs: int) -> tuple[float, float]:
        """Seconds between looks at so many jobs, and the calls per second that they take."""
        seconds = self.look_calls * jobs * self.call_seconds
        between = min(max(1.0, seconds / self.look_share), 300.0)
        return between, self.look_calls * jobs / (seconds + between)


@dataclass
class Totals:
    """Worker-seconds, and jobs."""

    jobs: int = 0
    computing: float = 0.0
    starting: float = 0.0
    waiting: float = 0.0
    """For the file system, beside starting."""
    peak_calls: float = 0.0
    """Asked of the file system in the worst second."""


def jobs_of(algorithms: Sequence[str], per_job: int, draws: random.Random) -> list[float]:
    """CPU-seconds of the jobs of a stage, task by task."""
    jobs = []
    for name in algorithms:
        seconds, spread = SECONDS[name]
        side = SIDE_BY_SIDE[per_job] if name in ("svg", "pwm") else 1.0
        policies = [seconds * side * draws.lognormvariate(0.0, spread) for _ in range(TASKS) for _ in range(SEEDS)]
        size = SEEDS if name == "powr" else per_job if name != "mrq" else 1
        jobs += [sum(policies[i : i + size]) for i in range(0, len(policies), size)]
    return jobs


def evaluation(algorithms: int, draws: random.Random) -> list[float]:
    """One job per task, of its policies and as many random ones as seeds."""
    seconds, spread = SECONDS["evaluate"]
    return [seconds * (algorithms + 1) * SEEDS * draws.lognormvariate(0.0, spread) for _ in range(TASKS)]


def run_stage(jobs: Sequence[float], cluster: Cluster, start: float, totals: Totals) -> float:
    """When the command has gathered the last job of a stage whose jobs it submits at `start`."""
    between, looks = cluster.look(len(jobs))
    rate = cluster.calls_per_second - looks
    asked = cluster.import_calls + cluster.own_calls
    own = cluster.start_seconds + asked * cluster.call_seconds
    free = [start] * min(cluster.workers, len(jobs))
    calls: dict[int, float] = {}
    scheduler = server = start
    ends: list[float] = []
    for seconds in jobs:
        begin = max(heapq.heappop(free), scheduler)
        scheduler = begin + 1 / cluster.starts_per_second
        server = max(server, begin) + asked / rate
        calls[int(begin)] = calls.get(int(begin), 0.0) + asked
        ready = max(begin + own, server)
        heapq.heappush(free, ready + seconds)
        ends.append(ready + seconds)
        totals.jobs += 1
        totals.computing += seconds
        totals.starting += own
        totals.waiting += ready - begin - own
    totals.peak_calls = max(totals.peak_calls, *calls.values())
    gathered = start
    for end in sorted(ends):
        gathered = max(gathered, end + between / 2) + cluster.gather_seconds
    return gathered


def simulate(cluster: Cluster, *, mrq: bool = True, together: bool = False, per_job: int = 1) -> dict[str, object]:
    """Args:
    mrq: without it, all jobs are short.
    together: all algorithms are submitted at once, longest jobs first, not stage after stage.
    per_job: policies in a job of extract.
    """
    draws, totals, now = random.Random(0), Totals(), 0.0
    stages = [["svg", "pwm", "bc"], *([["mrq"]] if mrq else []), ["powr"]]
    work = [jobs_of(names, per_job, draws) for names in stages]
    if together:
        work = [sorted((job for jobs in work for job in jobs), reverse=True)]
    for jobs in [*work, evaluation(sum(map(len, stages)), draws)]:
        now = run_stage(jobs, cluster, now, totals)
    all_time = now * cluster.workers
    return {
        "workers": cluster.workers,
        "mrq": mrq,
        "together": together,
        "policies_per_job": per_job,
        "hours": round(now / 3600, 2),
        "jobs": totals.jobs,
        "computing": round(totals.computing / all_time, 3),
        "starting": round(totals.starting / all_time, 3),
        "waiting_for_files": round(abs(totals.waiting) / all_time, 3),
        "idle": round(1 - (totals.computing + totals.starting + totals.waiting) / all_time, 3),
        "peak_calls_per_second": round(totals.peak_calls),
    }


def short_jobs() -> Iterator[dict[str, object]]:
    """What breaks first as jobs become many: jobs of 10 s on 512 workers."""
    cases = {"shared environment": Cluster(512), "environment on the nodes": Cluster(512, import_calls=0)}
    for jobs in (1_200, 12_000, 120_000):
        for name, cluster in cases.items():
            yield {
                "jobs_of_10_s": jobs,
                "case": name,
                "hours": round(run_stage([10.0] * jobs, cluster, 0.0, Totals()) / 3600, 2),
                "hours_of_computing": round(jobs * 10 / 512 / 3600, 2),
                "calls_per_second_of_looks": round(cluster.look(jobs)[1]),
                "once_a_second": round(replace(cluster, look_share=1.0).look(jobs)[1]),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--workers", type=int, nargs="+", default=[8, 64, 512])
    for workers in parser.parse_args().workers:
        cluster = Cluster(workers)
        print(json.dumps(simulate(cluster)))
        print(json.dumps(simulate(cluster, together=True)))
        print(json.dumps(simulate(cluster, mrq=False)))
        print(json.dumps(simulate(cluster, mrq=False, per_job=6)))
        print(json.dumps({"environment": "on the nodes", **simulate(replace(cluster, import_calls=0), mrq=False)}))
    for row in short_jobs():
        print(json.dumps(row))


if __name__ == "__main__":
    main()

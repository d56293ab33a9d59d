"""Jobs on every executor of one machine: the same results, and one that raises, dies, hangs or is damaged costs only
itself. Clusters are in tests/cluster."""

from __future__ import annotations

import importlib
import itertools
import json
import logging
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from orrery.pipeline.config.load import load_config
from orrery.pipeline.errors import ConfigError, StageError
from orrery.pipeline.jobs import process as job_process
from orrery.pipeline.jobs.config import FanoutConfig
from orrery.pipeline.jobs.executors.local import LocalExecutor, local_slots
from orrery.pipeline.jobs.fanout import FanoutFailed, FolderJob, fan_out, job_folders, prune
from orrery.pipeline.jobs.job import read_status
from orrery.pipeline.lock import locked
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.runner import run
from orrery.pipeline.stage import Context
from rich.console import Console

HERE = Path(__file__).parent
LIMIT_MIN = 0.15
"""Long enough for a job to start and end on a loaded machine."""
NAMES = ("a", "b", "c", "d", "e")

LOCAL = FanoutConfig(executor="local", parallel_jobs=5, time_limit_min=LIMIT_MIN)
RAY = FanoutConfig(executor="ray", time_limit_min=LIMIT_MIN)

ISOLATING = [
    pytest.param(LOCAL, id="local"),
    pytest.param(RAY, id="ray", marks=pytest.mark.ray),
]


class Bench:
    """A stage's context with five jobs, each the square of a number, and faults to order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.faults = folder / "faults"
        self.faults.mkdir(parents=True)
        self.messages: list[str] = []
        log = logging.getLogger(f"test.{folder}")
        log.setLevel(logging.DEBUG)
        handler = logging.Handler()
        handler.emit = lambda record: self.messages.append(record.getMessage())  # type: ignore[method-assign]
        log.addHandler(handler)
        self.context = Context(folder / "squares.partial", {}, 2, 1, log, ConsoleProgress(Console(quiet=True)))
        self.functions = importlib.import_module("fanout_jobs")

    def order(self, **faults: str) -> None:
        for path in self.faults.iterdir():
            path.unlink()
        for name, fault in faults.items():
            (self.faults / name).write_text(fault)

    def run(self, config: FanoutConfig, **numbers: int) -> dict[str, Path]:
        numbers = numbers or {name: index for index, name in enumerate(NAMES)}
        jobs = [FolderJob(name, {"name": name, "number": number}) for name, number in numbers.items()]
        return fan_out(jobs, self.functions.square, self.context, config)

    def fails(self, config: FanoutConfig) -> str:
        with pytest.raises(FanoutFailed) as caught:
            self.run(config)
        return str(caught.value)

    def states(self) -> dict[str, str]:
        return {name: read_status(self.context.jobs / name).state for name in NAMES}

    def attempts(self) -> dict[str, int]:
        return {name: read_status(self.context.jobs / name).attempts for name in NAMES}

    def log(self, name: str) -> str:
        return (self.context.jobs / name / "log.txt").read_text()


@pytest.fixture
def bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.syspath_prepend(HERE)
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    monkeypatch.setenv("FAULTS", str(tmp_path / "faults"))
    return Bench(tmp_path)


@pytest.fixture(autouse=True)
def skip_without_ray(request: pytest.FixtureRequest) -> None:
    if request.node.get_closest_marker("ray"):
        pytest.importorskip("ray")


def contents(folders: dict[str, Path]) -> dict[str, bytes]:
    """Every file of every result but the manifests, which hold times."""
    return {
        f"{name}/{path.relative_to(folder)}": path.read_bytes()
        for name, folder in folders.items()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "manifest.json"
    }


EXPECTED = {f"{name}/square.json": str(index**2).encode() for index, name in enumerate(NAMES)}
EXPECTED |= {f"{name}/deep/name.txt": name.encode() for name in NAMES}


def test_results_and_logs(bench: Bench) -> None:
    assert contents(bench.run(FanoutConfig())) == EXPECTED
    assert set(bench.states().values()) == {"done"}
    assert set(bench.attempts().values()) == {1}
    assert "logged by c" in bench.log("c")
    assert "logged by a" not in bench.log("c")
    begin, *_, end = bench.log("c").splitlines()
    assert begin.startswith("--- attempt 1 on ")
    assert end.startswith("--- done after ")


def test_the_log_of_a_job_in_this_process_holds_its_traceback(bench: Bench) -> None:
    bench.order(a="raise")
    bench.fails(FanoutConfig())
    assert "in square\n    raise ValueError" in bench.log("a")
    assert bench.log("a").endswith(" s: ValueError: 0 is a bad number\n")
    assert "--- failed after " in bench.log("a")


@pytest.mark.parametrize("config", ISOLATING)
def test_a_job_that_raises_dies_or_hangs_costs_only_itself(bench: Bench, config: FanoutConfig) -> None:
    bench.order(a="raise", b="exit", c="kill", d="hang")
    message = bench.fails(config)

    assert bench.states() == {"a": "failed", "b": "died", "c": "died", "d": "timeout", "e": "done"}
    assert "4 of 5 jobs of stage 'squares' failed. The results of the others are kept" in message
    for part in (
        "a: ValueError: 0 is a bad number (failed after 1 attempt,",
        "b: its process exited with status 7",
        "c: its process was killed by SIGKILL; out of memory, or killed",
        f"d: reached the time limit of {LIMIT_MIN:g} min",
        f"log: {bench.context.jobs}/d/log.txt",
    ):
        assert part in message
    assert "in square\n    raise ValueError" in bench.log("a")
    assert "logged by e" in bench.log("e")
    assert bench.log("b").endswith(" s: its process exited with status 7 without reporting a result\n")
    assert "--- died after " in bench.log("c")
    assert "killed by SIGKILL" in bench.log("c")
    assert "--- timeout after " in bench.log("d")

    bench.order()
    (bench.context.jobs / "e" / "result" / "square.json").write_text("17")
    assert contents(bench.run(config)) == EXPECTED
    assert set(bench.states().values()) == {"done"}
    assert set(bench.attempts().values()) == {2}
    assert bench.log("b").count("--- attempt") == 2
    (damaged,) = [message for message in bench.messages if "damaged result" in message]
    assert "square.json was changed" in damaged


def test_a_job_that_raises_in_this_process_costs_only_itself(bench: Bench) -> None:
    bench.order(b="raise")
    assert "b: ValueError: 1 is a bad number" in bench.fails(FanoutConfig())
    assert bench.states() == {"a": "done", "b": "failed", "c": "done", "d": "done", "e": "done"}
    assert "raise ValueError" in bench.log("b")
    bench.order()
    assert contents(bench.run(FanoutConfig()))["b/square.json"] == b"1"
    assert bench.attempts() == {"a": 1, "b": 2, "c": 1, "d": 1, "e": 1}


def test_a_damaged_result_is_found_and_made_again(bench: Bench) -> None:
    folders = bench.run(FanoutConfig())
    (folders["a"] / "square.json").write_text("7")
    (folders["b"] / "square.json").write_text("")
    (folders["c"] / "manifest.json").write_text("{")
    (folders["d"] / "manifest.json").unlink()
    assert contents(bench.run(FanoutConfig())) == EXPECTED
    assert bench.attempts() == {"a": 2, "b": 2, "c": 2, "d": 2, "e": 1}
    damaged = [message for message in bench.messages if "damaged result" in message]
    assert len(damaged) == 4
    assert "square.json was changed" in damaged[0]


def test_what_happens_to_a_result_while_other_jobs_run_is_found(bench: Bench) -> None:
    bench.order(e="damage a")
    assert contents(bench.run(FanoutConfig())) == EXPECTED
    assert bench.attempts() == {"a": 2, "b": 1, "c": 1, "d": 1, "e": 1}
    assert any("a: damaged result" in message for message in bench.messages)


def test_a_job_folder_that_is_removed_while_other_jobs_run_is_made_again(bench: Bench) -> None:
    bench.order(e="remove a")
    assert contents(bench.run(FanoutConfig())) == EXPECTED
    assert bench.attempts() == {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}


def test_results_that_do_not_stay_whole_are_an_error(bench: Bench) -> None:
    bench.order(e="damage a", a="damage e")
    with pytest.raises(StageError, match=r"results of squares were deleted or changed .* twice: e in .*squares\.jobs"):
        bench.run(FanoutConfig())


def test_finished_jobs_are_not_run_again_on_another_executor(bench: Bench) -> None:
    bench.order(b="raise")
    bench.fails(FanoutConfig())
    bench.order()
    bench.run(LOCAL)
    assert bench.attempts() == {"a": 1, "b": 2, "c": 1, "d": 1, "e": 1}
    # All are done, so no executor is asked for, not even one that would not answer.
    bench.run(FanoutConfig(executor="ray", options={"address": "127.0.0.1:1"}))


def test_a_job_with_another_payload_starts_anew_and_the_former_result_is_kept(bench: Bench) -> None:
    bench.run(FanoutConfig())
    folders = bench.run(FanoutConfig(), a=0, b=9)
    assert (folders["b"] / "square.json").read_text() == "81"
    assert read_status(bench.context.jobs / "a").attempts == 1
    assert read_status(bench.context.jobs / "b").attempts == 1
    bench.run(FanoutConfig())  # what the first command made is still there
    assert bench.attempts() == {"a": 1, "b": 1, "c": 1, "d": 1, "e": 1}


@pytest.mark.parametrize(
    "config", [pytest.param(FanoutConfig(retries=1), id="inline"), FanoutConfig("local", retries=1)]
)
def test_retries(bench: Bench, config: FanoutConfig) -> None:
    bench.order(a="raise once", b="raise")
    message = bench.fails(config)
    assert "1 of 5 jobs" in message
    assert "b: ValueError: 1 is a bad number (failed after 2 attempts" in message
    assert bench.attempts() == {"a": 2, "b": 2, "c": 1, "d": 1, "e": 1}


def test_a_result_that_is_seen_later_than_its_status(bench: Bench) -> None:
    """As on NFS."""
    result = bench.context.jobs / "a" / "result"

    def hide() -> None:
        while not result.exists():
            time.sleep(0.001)
        result.rename(result.with_name("hidden"))
        time.sleep(2)
        result.with_name("hidden").rename(result)

    with ThreadPoolExecutor() as threads:
        hidden = threads.submit(hide)
        assert contents(bench.run(LOCAL, a=3)) == {"a/square.json": b"9", "a/deep/name.txt": b"a"}
        hidden.result()


def test_jobs_on_a_slow_file_system_are_looked_at_less_often(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    looks: list[float] = []

    def slow(executor: LocalExecutor, folder: Path) -> str | None:
        looks.append(time.monotonic())
        time.sleep(0.05)
        return ended(executor, folder)

    ended = LocalExecutor.ended
    monkeypatch.setattr(LocalExecutor, "ended", slow)
    fan_out([FolderJob("a", {"seconds": 1.5})], bench.functions.environment, bench.context, LOCAL)
    first, *_, last = (after - before for before, after in itertools.pairwise(looks[:-1]))
    assert first < 0.4 < last, "a single slow look says little"


def test_a_job_that_does_not_answer_sigterm_is_killed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_process, "GRACE_SECONDS", 0.5)
    bench.order(a="hang in C")
    started = time.monotonic()
    assert "a: reached the time limit" in bench.fails(FanoutConfig("local", parallel_jobs=5, time_limit_min=0.05))
    assert time.monotonic() - started < 10


def test_every_gpu_gets_its_jobs(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2, 5")
    config = FanoutConfig("local", jobs_per_gpu=2, cpus_per_job=3)
    assert local_slots(config.resources(1, "auto", 1)) == ["2", "5", "2", "5"]
    assert local_slots(config.resources(1, "cpu", 9)) == ["", "", ""]
    assert local_slots(FanoutConfig("local", parallel_jobs=1).resources(1, "cuda", 3)) == ["2"]
    jobs = [FolderJob(str(number), {"seconds": 1.0}) for number in range(4)]
    folders = fan_out(jobs, bench.functions.environment, bench.context, config, accelerator="cuda")
    facts = [json.loads((folder / "environment.json").read_text()) for folder in folders.values()]
    assert sorted(one["CUDA_VISIBLE_DEVICES"] for one in facts) == ["2", "2", "5", "5"]
    assert {(one["OMP_NUM_THREADS"], one["threads"]) for one in facts} == {("3", 3)}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(StageError, match="jobs need a GPU, but this machine has none"):
        local_slots(config.resources(1, "cuda", 1))


def test_jobs_are_taken_over_when_a_setting_grows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAULTS", str(tmp_path / "faults"))
    monkeypatch.syspath_prepend(HERE)
    module = importlib.import_module("fanout_jobs")
    stages, config_dir, run_dir = {"count": module.Count}, module.write_configs(tmp_path / "configs"), tmp_path / "run"
    quiet = ConsoleProgress(Console(quiet=True))

    def count(*overrides: str) -> str:
        config = load_config("toy", [f"run_dir={run_dir}", *overrides], stages=stages, config_dir=config_dir)
        with locked(run_dir):
            (outcome,) = run(config, stages, log=logging.getLogger("test"), progress=quiet)
        return outcome.status

    def attempts() -> dict[str, int]:
        return {path.name: read_status(path).attempts for path in job_folders(run_dir / "count.jobs")}

    assert count("count.until=1", "count.jobs=2") == "done"
    (tmp_path / "faults").mkdir()
    (tmp_path / "faults" / "job2").write_text("raise")
    with pytest.raises(FanoutFailed):
        count("count.until=1", "count.jobs=4")
    assert attempts() == {"job0": 1, "job1": 1, "job2": 1, "job3": 1}
    with pytest.raises(FanoutFailed):  # those of the interrupted attempt, too
        count("count.until=1", "count.jobs=3")
    assert attempts() == {"job0": 1, "job1": 1, "job2": 2}
    (tmp_path / "faults" / "job2").unlink()
    assert count("count.until=1", "count.jobs=4") == "done"
    assert attempts() == {"job0": 1, "job1": 1, "job2": 3, "job3": 1}
    assert count("count.until=1", "count.jobs=2") == "reused"
    assert count("count.until=1", "count.jobs=4") == "reused"
    assert count("count.until=1", "count.jobs=5") == "done"
    assert attempts() == {"job0": 1, "job1": 1, "job2": 3, "job3": 1, "job4": 1}
    assert count("count.until=2", "count.jobs=2") == "done"
    assert attempts() == {"job0": 1, "job1": 1}


def test_pruned_jobs_keep_results_and_logs(bench: Bench) -> None:
    folders = bench.run(FanoutConfig())
    unfinished = folders["a"].with_name("result.partial")
    unfinished.mkdir()
    prune(bench.context.jobs)
    assert (folders["a"].is_dir(), unfinished.exists()) == (True, False)
    assert "logged by a" in bench.log("a")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"executor": "slrum"}, "expected one of inline, local, ray, slurm, found 'slrum'"),
        ({"executor": "slurm"}, "executor=slurm needs a time limit per job"),
        ({"time_limit_min": 5.0}, "not supported by executor=inline"),
        ({"executor": "local", "detach": True}, "slurm supports detach"),
        ({"options": {"address": "auto"}}, "options.address: executor=inline has no such option. Its options: none"),
        ({"retries": -1}, "retries must not be negative"),
        ({"options": {"gpu": 1}, "executor": "slurm", "time_limit_min": 1.0}, r"options.gpu: .* Did you mean 'gpus'"),
        (
            {"options": {"gpus": "a"}, "executor": "slurm", "time_limit_min": 1.0},
            "options.gpus: expected int, found 'a'",
        ),
        ({"jobs_per_gpu": 0}, "jobs_per_gpu must be at least 1"),
    ],
)
def test_settings_that_contradict_each_other(settings: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        FanoutConfig(**settings)


def test_an_executor_that_is_not_there(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StageError, match="srun is not available on this machine"):
        FanoutConfig("slurm", time_limit_min=1.0).check_machine()
    for name in ("ray", "slurm"):
        monkeypatch.setattr(f"orrery.pipeline.jobs.executors.{name}.find_spec", lambda name: None)
    with pytest.raises(StageError, match=r"pip install 'orrery\[ray\]'"):
        FanoutConfig("ray").check_machine()
    with pytest.raises(StageError, match="pip install submitit"):
        FanoutConfig("slurm", time_limit_min=1.0).check_machine()


@pytest.mark.ray
def test_what_listens_but_is_no_ray_cluster_is_refused(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orrery.pipeline.jobs.executors.ray.HEALTH_SECONDS", 3.0)
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        pytest.raises(StageError, match=r"cannot be used as a Ray cluster: no answer in 3 s"),
    ):
        bench.run(FanoutConfig("ray", options={"address": f"127.0.0.1:{server.getsockname()[1]}"}))

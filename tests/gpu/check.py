"""The checks and measurements of `tests/gpu/check.sh`, those that say most first; see there.

A measurement is a check as well: a step after the first that waits for the device is an error. Utilisation is the share
of the speed that the same machine reaches in one large matrix product in the same precision.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import logging
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from orrery.datasets.datamodule import WindowData, WindowSettings
from orrery.datasets.schema import TaskSpec
from orrery.datasets.store import TaskStore
from orrery.pipeline.accelerator import autocast, matmul_precision
from orrery.pipeline.logging import ConsoleProgress
from orrery.pipeline.stage import Context
from orrery.stages.pretrain.config import PretrainConfig
from orrery.stages.pretrain.stage_pretrain import Pretrain
from orrery.stages.training.config import OptimizerConfig, TrainerConfig
from orrery.stages.training.fit import fit
from orrery.stages.world_model.config import LossConfig, WorldModelConfig
from orrery.stages.world_model.module import WorldModelTraining
from orrery.stages.world_model.networks import WorldModel
from rich.console import Console
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import extraction
from random_store import write_random_store

SECONDS = 420
"""After which no more measurements begin."""
NEVER = 10**9
KINDS = {"float32": ("highest", "32-true"), "TF32": ("high", "32-true"), "bfloat16": ("high", "bf16-mixed")}
"""Precision of float32 matrix products, and what a stage's `precision` is."""


@dataclass(frozen=True)
class Scale:
    """How much is done."""

    sizes: tuple[str, ...]
    """Of models, the largest last."""
    horizons: tuple[int, ...]
    compiled: bool
    """Whether to measure compiled losses, too."""
    batch_size: int
    members: int
    transitions: int
    warm_up: int
    steps: int
    """Timed together, after one that is counted and some that warm up."""


SCALES = {
    "cuda": Scale(("5", "19", "48"), (3, 16), True, 1024, 30, 1_000_000, 3, 10),
    "cpu": Scale(("1",), (3,), False, 8, 2, 6_000, 1, 1),
}


@dataclass(frozen=True)
class Row:
    """A measurement."""

    seconds: float
    """Of an update."""
    flops: int
    """Of its matrix products."""
    gigabytes: float
    """Peak of the device's memory."""


class Check:
    """One run on a device."""

    def __init__(self, device: torch.device, place: Path) -> None:
        self.device, self.place, self.scale = device, place, SCALES[device.type]
        self.store, self.flops = place / "store", dict[tuple[str, int], int]()
        write_random_store(self.store, [TaskSpec(f"check/{i}", 24, 6, 500) for i in range(4)], self.scale.transitions)

    def resume(self) -> str:
        """Four steps of the stage from a mapped store, in one attempt and in two, end in the same model."""
        whole, resumed = self._pretrain("whole", 4), self._pretrain("resumed", 2, 4)
        # Of weights without a gradient, Adam's first steps depend on the rounding of sums, which on a GPU varies.
        worst = max(float((whole[name] - value).abs().float().mean()) for name, value in resumed.items())
        if not worst <= (0.0 if self.device.type == "cpu" else 1e-5):
            raise AssertionError(f"weights differ by {worst:.2g} on average after a resume")
        return f"4 training steps from a mapped store, and 2 + 2 with a resume: weights differ by {worst:.2g}"

    def _pretrain(self, name: str, *attempts: int) -> dict[str, Any]:
        for steps in attempts:
            config = PretrainConfig(
                model=WorldModelConfig(size=self.scale.sizes[0]),
                trainer=TrainerConfig(accelerator=self.device.type),
                steps=steps,
                batch_size=self.scale.batch_size,
                load_up_to_gb=0,
                validation_batches=1,
            )
            Pretrain(config).run(self._context(name))
        return WorldModel.load(self.place / name).state_dict()

    def _context(self, name: str) -> Context:
        (self.place / name).mkdir(exist_ok=True)
        progress = ConsoleProgress(Console(quiet=True))
        return Context(self.place / name, {"store": [self.store]}, 1, 1, logging.getLogger(), progress)

    def measurements(self) -> Iterator[tuple[str, str, Callable[[], Row]]]:
        """What is measured, in which of KINDS, and how."""
        scale = self.scale
        trainings = list(itertools.product(KINDS, scale.horizons, scale.sizes))
        for kind, horizon, size in trainings:
            yield f"pretrain, size {size}, horizon {horizon}", kind, partial(self._train, size, horizon, kind)
        policies = f"{scale.members} policies on size {scale.sizes[-1]}"
        for algorithm, kind, mode in itertools.product(("svg", "pwm"), ("float32", "bfloat16"), extraction.MODES):
            what = f"extract {algorithm}, {policies}, {mode.replace('_', ' ')}"
            yield what, kind, partial(self._extract, algorithm, mode, kind)
        if scale.compiled:
            what = f"extract pwm, {policies}, batched, compiled"
            yield what, "float32", partial(self._extract, "pwm", "batched", "float32", compiled=True)
            for kind, horizon, size in reversed(trainings):
                what = f"pretrain, size {size}, horizon {horizon}, compiled"
                yield what, kind, partial(self._train, size, horizon, kind, compiled=True)

    def _train(self, size: str, horizon: int, kind: str, *, compiled: bool = False) -> Row:
        scale, (products, precision) = self.scale, KINDS[kind]
        clock = Clock(self.device, count=not compiled)
        model = WorldModel(WorldModelConfig(size=size), TaskStore.open(self.store).table)
        module = MeasuredTraining(
            model, LossConfig(), OptimizerConfig(), torch.ones(len(model.table)), clock.end, NEVER, compiled=compiled
        )
        trainer = TrainerConfig(accelerator=self.device.type, precision=precision, log_every=NEVER)
        config = PretrainConfig(steps=clock.end, trainer=trainer, loggers=["csv"], checkpoint_every=NEVER)
        windows = WindowSettings(horizon, scale.batch_size, 0, 0.0, horizon, 1, load_up_to_gb=2.0)
        with tempfile.TemporaryDirectory(dir=self.place) as name, contextlib.ExitStack() as step:
            module.products, module.clock, module.step = products, clock, step
            fit(module, WindowData(self.store, windows), config, "check", self._context(name))
        # A compiled step cannot be counted; the same step as it is was measured before.
        found = clock.row(self.flops.get((size, horizon), 0))
        self.flops[size, horizon] = found.flops
        return found

    def _extract(self, algorithm: str, mode: str, kind: str, *, compiled: bool = False) -> Row:
        given = argparse.Namespace(algorithm=algorithm, compile=compiled)
        built = extraction.programs(mode, self.scale.sizes[-1], self.scale.members, self.device.type, given)
        clock = Clock(self.device, count=not compiled)
        with matmul_precision("highest"):
            for number in range(clock.end):
                with clock.step(number), autocast(KINDS[kind][1], self.device, 0):
                    extraction.update_all(built, number)
        return clock.row(0)


class Clock:
    """Takes the time of updates. Every update but the first must not wait for the device."""

    def __init__(self, device: torch.device, *, count: bool) -> None:
        scale = SCALES[device.type]
        self._device, self._first = device, 1 + scale.warm_up
        self.end = self._first + scale.steps
        """Number of updates."""
        self._counter = Products() if count else None
        if device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    @contextlib.contextmanager
    def step(self, number: int) -> Iterator[None]:
        if number == self._first:
            self._start = self._now()
        first = self._counter or contextlib.nullcontext()
        with first if number == 0 else self._without_waits():
            yield
        if number == self.end - 1:
            self._seconds = (self._now() - self._start) / (self.end - self._first)

    def row(self, flops: int) -> Row:
        """`flops` where they were not counted."""
        peak = torch.cuda.max_memory_allocated() if self._device.type == "cuda" else 0
        return Row(self._seconds, self._counter.flops if self._counter else flops, peak / 1e9)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextlib.contextmanager
    def _without_waits(self) -> Iterator[None]:
        if self._device.type != "cuda":
            yield
            return
        torch.cuda.set_sync_debug_mode("error")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Products(TorchDispatchMode):
    """Counts floating-point operations as FlopCounterMode does, whose hooks on modules refuse PWM's."""

    flops = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = function(*args, **(kwargs or {}))
        if count := flop_registry.get(function._overloadpacket):
            self.flops += count(*args, **(kwargs or {}), out_val=found)
        return found


class MeasuredTraining(WorldModelTraining):
    """Each step, from the batch that is there to the changed weights, in the context of the clock."""

    products: str
    clock: Clock
    step: contextlib.ExitStack

    def setup(self, stage: str) -> None:
        super().setup(stage)
        torch.set_float32_matmul_precision(self.products)

    def on_train_batch_start(self, batch: Any, batch_index: int) -> None:
        self.step.enter_context(self.clock.step(batch_index))

    def on_train_batch_end(self, *_: object) -> None:
        self.step.close()


def product_speeds(device: torch.device) -> dict[str, float]:
    """Floating-point operations per second in one large matrix product, by KINDS."""
    n, found = {"cuda": 8192, "cpu": 256}[device.type], {}
    for kind, (products, precision) in KINDS.items():
        dtype = torch.bfloat16 if precision == "bf16-mixed" else torch.float32
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        clock = Clock(device, count=True)
        with matmul_precision(products):
            for number in range(clock.end):
                with clock.step(number):
                    a @ b
        row = clock.row(0)
        found[kind] = row.flops / row.seconds
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(SCALES), default="cuda")
    device = torch.device(parser.parse_args().device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("PyTorch finds no GPU here; --device cpu checks the same with tiny sizes")
    warnings.simplefilter("ignore")
    started, failed = time.monotonic(), 0
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU, tiny sizes: the times say nothing"
    print(f"torch {torch.__version__}, {name}", flush=True)
    with tempfile.TemporaryDirectory() as place:
        check, speeds = Check(device, Path(place)), product_speeds(device)
        print("TFLOP/s of a product:", ", ".join(f"{kind} {speed / 1e12:.3g}" for kind, speed in speeds.items()))
        try:
            print(check.resume(), flush=True)
        except Exception as error:  # what follows says something all the same
            failed += 1
            print(f"FAILED: resume: {type(error).__name__}: {error}", flush=True)
        print("\n| update | products | ms | TFLOP | utilisation | GB |\n| --- | --- | ---: | ---: | ---: | ---: |")
        for what, kind, measure in check.measurements():
            if time.monotonic() - started > SECONDS:
                print(f"| {what} | {kind} | not measured: time is up | | | |")
                continue
            try:
                torch.compiler.reset()  # of other sizes: they would count as recompilations
                row = measure()
            except Exception as error:
                failed += not isinstance(error, torch.OutOfMemoryError)
                print(f"| {what} | {kind} | FAILED: {type(error).__name__}: {error} | | | |", flush=True)
                continue
            share = row.flops / row.seconds / speeds[kind]
            numbers = f"{row.seconds * 1e3:.2f} | {row.flops / 1e12:.3g} | {share:.0%} | {row.gigabytes:.2f}"
            print(f"| {what} | {kind} | {numbers} |", flush=True)
    print(f"\n{failed} failed, {time.monotonic() - started:.0f} s")
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()

"""`orrery export`: a policy as a function that runs without Orrery, in ONNX Runtime or PyTorch."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from ...pipeline.command import Command, read_words
from .arguments import add_policy_arguments

if TYPE_CHECKING:
    from .exporting import Written
    from .latency import Latency

RUNTIMES = {"torch": "torch.export", "onnx": "ONNX Runtime"}
FORMATS = {"onnx": ["onnx"], "torch": ["torch"], "both": ["torch", "onnx"]}


class Export(Command):
    """Write a policy as ONNX or torch.export."""

    help = "export a policy as ONNX and torch.export, from raw observations to native actions"

    def add_arguments(self, parser: argparse.ArgumentParser) -> None:
        add_policy_arguments(parser, "select one policy of several")
        parser.add_argument("--format", choices=list(FORMATS), default="both", help="formats to write (default: both)")
        parser.add_argument(
            "--out", type=Path, default=Path("export"), metavar="DIR", help="output folder (default: export)"
        )
        parser.add_argument(
            "--store",
            type=Path,
            metavar="RUN/pack",
            help="compare on this data (default: on a newly played episode)",
        )

    def run(self, arguments: argparse.Namespace, console: Console) -> int:
        wishes = read_words(arguments.overrides, ("task", "algorithm", "seed"))
        from .choice import made_by, read_policy
        from .exporting import export_policy

        policy = read_policy(arguments.policy, wishes)
        made = made_by(policy)
        source = {"reference": arguments.policy, **made}
        written = export_policy(policy, FORMATS[arguments.format], arguments.out, store=arguments.store, source=source)
        console.print(f"policy: {made['algorithm']} on {policy.task.name}, seed {made['seed']}", soft_wrap=True)
        _print(written, console)
        return 0


def _print(written: Written, console: Console) -> None:
    for side in ("observation", "action"):
        values = written.description[side]
        bounds = f", {values['low']} to {values['high']}" if "low" in values else ""
        bounds += f", {values['values'][0]} to {values['values'][1]}" if "values" in values else ""
        units = f" ({values['units']})" if values.get("units", "environment") != "environment" else ""
        console.print(f"{side}: {values['dtype']} {values['shape']}{bounds}{units}", soft_wrap=True, markup=False)
    kinds = list(next(iter(written.formats.values())).differences)
    if kinds == ["random"]:
        console.print(
            "compared on random observations only, because no environment is known; use --store RUN/pack for recorded "
            "ones"
        )
    table = Table(box=None, pad_edge=False)
    for column in ("one core, batch 1", "p50", "p99", *(f"differs, {kind}" for kind in kinds), "file"):
        table.add_column(column)
    table.add_row("eager PyTorch", *_times(written.eager))
    for name, one in written.formats.items():
        differences = [f"{one.differences[kind]:.1e}" for kind in kinds]
        file = f"{written.folder / one.file} ({one.bytes / 1e6:.1f} MB)"
        table.add_row(RUNTIMES[name], *_times(one.latency), *differences, file)
    console.print(table)
    load, cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > cores:
        console.print(f"the machine was busy (load {load:.0f} on {cores} cores): latencies include waiting for a core")
    console.print("differs: largest difference from the policy's action, as a fraction of half the action range")


def _times(latency: Latency) -> tuple[str, str]:
    return f"{latency.p50_us:.0f} us", f"{latency.p99_us:.0f} us"

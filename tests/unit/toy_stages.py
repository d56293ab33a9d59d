"""Stages without any learning, for tests of the runner and the command line."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from orrery.pipeline.artifact import replacing
from orrery.pipeline.errors import StageError
from orrery.pipeline.stage import Context, Input, Stage


@dataclass(frozen=True)
class MakeConfig:
    seed: int = 0
    size: int = 3
    """Numbers to make; at least 1."""
    weights: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be at least 1, found {self.size}")


class Make(Stage):
    """Some numbers."""

    Config = MakeConfig
    output_kind = "numbers"

    def run(self, context: Context) -> str:
        text = " ".join(str(self.config.seed + i) for i in range(self.config.size))
        (context.folder / "numbers.txt").write_text(text)
        return f"{self.config.size} numbers"


@dataclass(frozen=True)
class AddConfig:
    scale: int = 1


class Add(Stage):
    """Their sum, in two halves, the first of which survives an interruption."""

    Config = AddConfig
    output_kind = "total"
    inputs = {"numbers": Input("numbers")}

    def check(self) -> None:
        if self.config.scale == 0:
            raise StageError("add.scale must not be 0")

    def check_machine(self) -> None:
        if os.environ.get("TOY_FAILURE") == "machine":
            raise StageError("add needs an abacus: pip install 'toy[abacus]'")

    def outdated(self, folder: Path, inputs: Mapping[str, Sequence[Path]]) -> str | None:
        assert (folder / "total.txt").is_file()
        assert (inputs["numbers"][0] / "numbers.txt").is_file()
        return os.environ.get("TOY_OUTDATED")

    def run(self, context: Context) -> str:
        half = context.folder / "half.txt"
        if half.exists():
            note = "continued"
        else:
            with replacing(half) as temporary:
                temporary.write_text("1")
            note = "from the start"
        if os.environ.get("TOY_FAILURE") == "kill":
            os._exit(9)
        if os.environ.get("TOY_FAILURE") == "interrupt":
            raise KeyboardInterrupt
        if os.environ.get("TOY_FAILURE") == "disk full":
            raise OSError(28, "No space left on device", str(half))
        if os.environ.get("TOY_FAILURE") == "folder deleted":
            shutil.rmtree(context.run.folder)
        if os.environ.get("TOY_FAILURE") == "bug":
            raise ZeroDivisionError("a bug")
        with context.progress("adding", 1) as task:
            numbers = [int(word) for word in (context.input("numbers") / "numbers.txt").read_text().split()]
            task.advance()
        (context.folder / "total.txt").write_text(str(self.config.scale * sum(numbers)))
        return f"total {self.config.scale * sum(numbers)} ({note})"


@dataclass(frozen=True)
class FrameConfig:
    width: int = 1
    sides: tuple[int, ...] = (1, 2)

    def __post_init__(self) -> None:
        if self.width < 0:
            raise ValueError("width must not be negative")


@dataclass(frozen=True)
class ShowConfig:
    title: str = field(default="toy", metadata={"renamed_from": "heading"})
    frame: FrameConfig = field(default_factory=FrameConfig)
    frames: dict[str, FrameConfig] = field(default_factory=dict)
    limit: float | None = None
    picture: str = ""


class Show(Stage):
    """A page about whatever there is."""

    Config = ShowConfig
    output_kind = "report"
    about_run = True
    inputs = {"totals": Input("total", optional=True, many=True)}
    not_hashed = ("frame.width",)

    def reads(self) -> list[Path]:
        return [Path(self.config.picture)] if self.config.picture else []

    def run(self, context: Context) -> str:
        totals = [(folder / "total.txt").read_text() for folder in context.inputs["totals"]]
        records = sorted(context.run.stage_records)
        (context.folder / "index.html").write_text(f"{self.config.title} {totals} {records}")
        return f"{len(totals)} totals"


STAGES: dict[str, type[Stage]] = {"make": Make, "add": Add, "report": Show}


def write_configs(folder: Path) -> Path:
    """Write the configs of the toy project and return their folder."""
    (folder / "experiments").mkdir(parents=True)
    (folder / "base.yaml").write_text("defaults: [schema, _self_]\n")
    (folder / "experiments" / "toy.yaml").write_text("# Adds numbers\nstages: [make, add, report]\n")
    return folder

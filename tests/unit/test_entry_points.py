"""What packages add by entry points: Orrery's own are complete, broken ones of others are harmless."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from orrery.pipeline import entry_points
from orrery.pipeline.cli import main
from orrery.pipeline.config.load import discover_stages, load_config
from orrery.pipeline.entry_points import load, load_all, names
from orrery.pipeline.errors import ConfigError
from orrery.pipeline.stage import Stage

ROOT = Path(__file__).parents[2]


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Install a package of one module: `install(name, {group: {entry: class}}, source)`."""
    caches = (entry_points._entries, entry_points.load, entry_points._load_or_warn)
    monkeypatch.syspath_prepend(tmp_path)

    def make(package: str, entries: dict[str, dict[str, str]], source: str) -> None:
        (tmp_path / f"{package}.py").write_text(source)
        info = tmp_path / f"{package}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        groups = (
            f"[orrery.{group}]\n" + "".join(f"{name} = {package}:{cls}\n" for name, cls in one.items())
            for group, one in entries.items()
        )
        (info / "entry_points.txt").write_text("\n".join(groups))
        for cache in caches:
            cache.cache_clear()

    yield make
    for cache in caches:
        cache.cache_clear()


GOOD = """
from dataclasses import dataclass
from orrery.pipeline.stage import Stage

@dataclass(frozen=True)
class Config:
    seed: int = 0

class Good(Stage):
    Config = Config
    output_kind = "total"
"""


@pytest.mark.parametrize(("prefix", "group"), [("stage", "stages"), ("command", "commands")])
def test_every_stage_and_command_file_has_an_entry_point(prefix: str, group: str) -> None:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["entry-points"][f"orrery.{group}"]
    files = {
        file.stem.removeprefix(f"{prefix}_"): ".".join(["orrery", *file.relative_to(ROOT).with_suffix("").parts])
        for folder in ("pipeline", "stages")
        for file in (ROOT / folder).rglob(f"{prefix}_*.py")
    }
    assert {name: value.partition(":")[0] for name, value in declared.items()} == files
    installed = {name: entry_points._entries(group)[name][0].value for name in names(group)}
    assert installed.items() >= declared.items(), "reinstall: pip install --no-deps -e ."


def test_names_are_listed_without_an_import() -> None:
    script = (
        "import sys\nfrom orrery.pipeline.entry_points import names\n"
        "assert 'extract' in names('stages') and 'play' in names('commands')\n"
        "found = [one for one in sys.modules if one.startswith('orrery.stages') or one in ('numpy', 'hydra')]\n"
        "assert not found, found\n"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_a_package_adds_a_stage(install) -> None:
    install("mine", {"stages": {"good": "Good"}}, GOOD)
    assert load("stages", "good", Stage).__name__ == "Good"
    assert load_config("quickstart", ["seed=4"], stages=discover_stages()).resolved["good"] == {"seed": 4}


BROKEN = [
    ("missing", "import not_there\n", "ModuleNotFoundError: No module named 'not_there'"),
    ("typo", "class Other: pass\n", "has no attribute 'Good'"),
    ("default", GOOD.replace("int = 0", "int"), "TypeError: every field of Config needs a default; missing: seed"),
    ("config", GOOD.replace("Config = Config", ""), "TypeError: Good must set Config, a frozen dataclass, and output_"),
    ("alien", "class Good: pass\n", "must be a subclass of orrery.pipeline.stage.Stage"),
]


@pytest.mark.parametrize(("package", "source", "reason"), BROKEN)
def test_a_broken_package_is_one_line_and_stops_only_what_names_it(
    install, caplog, capsys, tmp_path, package, source, reason
) -> None:
    install(package, {"stages": {"broken": "Good"}}, source)
    assert "broken" not in discover_stages()
    (record,) = caplog.records
    assert re.search(f"stage 'broken' of package '{package}' .*{re.escape(reason)}", record.getMessage())
    assert main(["plan", "quickstart", f"run_dir={tmp_path}/run"]) == 0
    assert main(["plan", "quickstart", f"run_dir={tmp_path}/run", "stages=[collect,broken]"]) == 2
    assert f"stage 'broken' of package '{package}'" in capsys.readouterr().err


def test_a_name_taken_twice(install, caplog) -> None:
    install("mine", {"stages": {"good": "Good", "tabular": "Good"}}, GOOD)
    install("yours", {"stages": {"good": "Good"}}, GOOD)
    assert "good" not in load_all("stages", Stage)
    assert load("stages", "tabular", Stage).__module__ == "orrery.stages.tabular.stage_tabular"
    twice, taken = sorted(record.getMessage() for record in caplog.records)
    assert "stage 'good' of package 'mine' (mine:Good) has the same name in package 'yours'" in twice
    assert taken == "warning: stage 'tabular' of package 'mine' is ignored: orrery has one of that name"


def test_a_broken_command_stops_only_itself(install, capsys) -> None:
    install("mine", {"commands": {"paint": "Good"}}, "import not_there\n")
    with pytest.raises(SystemExit) as exit_:
        main(["--help"])
    assert exit_.value.code == 0
    assert "play" in capsys.readouterr().out
    assert main(["paint"]) == 2
    assert "command 'paint' of package 'mine'" in capsys.readouterr().err


def test_a_stage_file_without_an_entry_point_says_what_to_do(monkeypatch, tmp_path) -> None:
    (tmp_path / "stages" / "new").mkdir(parents=True)
    (tmp_path / "stages" / "new" / "stage_new.py").touch()
    monkeypatch.setattr("orrery.pipeline.config.load.CONFIG_DIR", tmp_path / "configs")
    with pytest.raises(ConfigError, match=r"stage_new.py is not installed as a stage. Add its entry point .* pip "):
        load_config("quickstart", ["stages=[new]"], stages=discover_stages(), config_dir=ROOT / "configs")

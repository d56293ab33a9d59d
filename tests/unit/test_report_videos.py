"""Videos in the report: an episode that evaluate plays, curves where there is no picture, and errors before the run."""

from __future__ import annotations

import contextlib
import importlib.util
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from orrery.datasets.facts import DataFacts
from orrery.datasets.tasks import task_spec
from orrery.pipeline.errors import ConfigError, TaskError
from orrery.pipeline.stage import Context
from orrery.stages.deployment import opengl
from orrery.stages.deployment.playing import play
from orrery.stages.policy.policy_index import policy_entry, write_index
from orrery.stages.reporting.config import ReportConfig
from orrery.stages.reporting.stage_report import Report

from . import deployed

needs_video = pytest.mark.skipif(
    importlib.util.find_spec("imageio_ffmpeg") is None, reason="the extra `video` is not installed"
)


@contextlib.contextmanager
def progress(description: str, total: float, completed: float = 0):
    yield SimpleNamespace(advance=lambda amount=1: None, note=lambda text: None)


def write_report(root: Path, *policies) -> str:
    """The page of a report about policies of algorithm pwm, seed 3."""
    torch.manual_seed(0)
    entries = [policy_entry("pwm", policy.task, 3) for policy in policies]
    for policy, entry in zip(policies, entries, strict=True):
        policy.save(root / "policies" / entry["path"])
    write_index(root / "policies", [policy.task for policy in policies], entries)
    (root / "report").mkdir()
    inputs = {"policies": [root / "policies"]}
    context = Context(root / "report", inputs, 1, 1, logging.getLogger("test"), progress, None)
    Report(ReportConfig(videos=True)).run(context)
    return (root / "report" / "index.html").read_text(encoding="utf-8")


@needs_video
def test_a_task_without_a_picture_has_curves_and_one_that_fails_its_reason(tmp_path):
    tumour = deployed.state(task_spec("myriad/cancer"))
    blind = deployed.latent(deployed.arm_task(kwargs={"broken": "render"}))
    page = write_report(tmp_path, tumour, blind)
    section = page[page.index('<section id="videos">') :]
    assert '<img src="data:image/png;base64,' in section
    (result,) = play(tumour, tmp_path / "same.png").results
    assert f"seed 3: return {result.return_:.4g}" in section
    assert "no video: task &#39;test/arm&#39; cannot be rendered" in section


@needs_video
def test_a_video_is_in_the_page(tmp_path):
    page = write_report(tmp_path, deployed.latent(deployed.arm_task()))
    assert 'src="data:video/mp4;base64,' in page
    assert "test/arm<br>pwm, seed 3: return " in page


def test_what_is_missing_is_named_before_anything_runs(monkeypatch):
    report, facts = Report(ReportConfig(videos=True)), {"store": [DataFacts(("dmc/walker-run",))]}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"report.videos needs imageio-ffmpeg: pip install 'orrery\[video\]'"):
        report.check_inputs(facts)
    Report(ReportConfig()).check_inputs(facts)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)
    monkeypatch.setattr(opengl, "_try", lambda backend: f"no {backend} library")
    monkeypatch.setenv("MUJOCO_GL", "egl")
    with pytest.raises(TaskError, match=r"report.videos: MuJoCo cannot render here .* Or set report.videos=false"):
        report.check_inputs(facts)
    report.check_inputs({"store": [DataFacts(("myriad/cancer",)), None]})

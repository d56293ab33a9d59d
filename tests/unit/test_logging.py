import io
import logging
import warnings
from pathlib import Path

import pytest
from orrery.pipeline import logging as run_logging
from rich.console import Console


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.44, "0.4 s"), (12.3, "12 s"), (59.7, "1 min 00 s"), (185, "3 min 05 s"), (7800, "2 h 10 min")],
)
def test_durations(seconds: float, said: str) -> None:
    assert run_logging.duration(seconds) == said


def test_into_a_file_progress_is_a_line_now_and_then(monkeypatch) -> None:
    now = [100.0]
    monkeypatch.setattr(run_logging.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with run_logging.ConsoleProgress(Console(file=out, width=80))("pack", total=100, completed=40) as task:
        task.note("loss 0.5")
        for _ in range(25):
            now[0] += 1
            task.advance(2)
    # 2 per second, counted from where this attempt began: 40 left after 10 s, 20 left after 20 s.
    assert out.getvalue() == "  pack 60/100, 20 s left loss 0.5\n  pack 80/100, 10 s left loss 0.5\n"


def test_the_time_left_follows_work_that_becomes_slower(monkeypatch) -> None:
    now = [0.0]
    monkeypatch.setattr(run_logging.time, "monotonic", lambda: now[0])
    out = io.StringIO()
    with run_logging.ConsoleProgress(Console(file=out, width=80))("mrq", total=1000) as task:
        for step in range(600):  # the first 500 in ten seconds, then one in two seconds
            now[0] += 0.02 if step < 500 else 2
            task.advance(1)
    assert out.getvalue().splitlines()[-1] == "  mrq 597/1000, 13 min 26 s left"


def test_the_console_gets_our_messages_and_the_file_those_of_libraries_too(tmp_path: Path) -> None:
    out = io.StringIO()
    with run_logging.logging_to(Console(file=out, width=80), tmp_path / "log.txt") as log:
        warnings.simplefilter("default")
        log.debug("detail")
        log.warning("look [here]")
        warnings.warn("from a library", UserWarning, stacklevel=1)
    assert out.getvalue() == "  look [here]\n"
    written = (tmp_path / "log.txt").read_text()
    for part in ("detail", "WARNING orrery: look [here]", "from a library"):
        assert part in written
    assert logging.getLogger("orrery").handlers == []

"""The tutorial, executed from top to bottom as a reader would."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "pages" / "tutorial.md"
BLOCK = re.compile(r'^```(\w+)(?: title="(\S+)")?\n(.*?)^```$', re.MULTILINE | re.DOTALL)


def test_every_file_and_command_of_the_tutorial(tmp_path: Path) -> None:
    script = ["set -e"]
    for language, title, text in BLOCK.findall(PAGE.read_text(encoding="utf-8")):
        if title:
            (tmp_path / title).write_text(text)
        else:
            assert language == "bash", f"a block of {language} without a title"
            script.append(text)
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path}
    done = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (total,) = re.findall(r"^return (\S+) of at most 50$", done.stdout, re.MULTILINE)
    # The behaviour of the data has a mean return of 14.5.
    assert float(total) > 30, done.stdout
    assert re.search(r"^svg +lab/cart ", done.stdout, re.MULTILINE), "compare"
    assert re.search(r"^force \[\[-", done.stdout, re.MULTILINE), "the cart is pulled back to its target"

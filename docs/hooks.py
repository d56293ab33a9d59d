"""MkDocs hooks: use README.md as the first page, and add the pages of `reference.py`."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path

import reference
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]

GUIDES = {
    "Your own data": "data.md",
    "Models": "models.md",
    "Using a pretrained model": "pretrained.md",
    "Tasks": "tasks.md",
    "Scores and metrics": "scores.md",
    "Results": "results.md",
    "Results of the alternatives": "alternatives.md",
    "Devices and jobs": "jobs.md",
    "Adding algorithms, formats and executors": "extending.md",
    "Differences from the released code": "differences.md",
    "Python and TorchRL": "python.md",
    "Notebooks": "notebooks.md",
    "Gallery": "gallery.md",
}


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Complete the navigation, and show mkdocstrings where the code is."""
    config.nav = [{"Orrery": "index.md"}, {"Guides": [{title: path} for title, path in GUIDES.items()]}]
    config.nav += reference.navigation()
    # `orrery` is a namespace over folders of the repository; the parser needs it as a folder of that name.
    package = Path(tempfile.mkdtemp()) / "orrery"
    package.mkdir()
    for folder in ("pipeline", "datasets", "stages", "configs"):
        (package / folder).symlink_to(ROOT / folder)
    config.plugins["mkdocstrings"].config.handlers["python"]["paths"] = [str(package.parent)]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the generated pages, and README.md with the pictures that it shows."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for path in re.findall(r"!\[[^]]*\]\(([^):]+)\)", readme):
        files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    made = reference.pages() | {"index.md": readme.replace("](docs/pages/", "](")}
    for path, text in made.items():
        files.append(File.generated(config, path, content=text))
    return files

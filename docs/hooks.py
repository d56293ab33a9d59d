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


@event_priority(100)  # before mkdocstrings reads its settings
def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Add the generated pages to the navigation after the guides, and show mkdocstrings where the code is."""
    assert config.nav is not None
    config.nav[2:2] = reference.navigation()
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

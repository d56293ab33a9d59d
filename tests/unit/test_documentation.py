"""The documentation says everything about every stage, and what lies beside it is in order. Needs no MkDocs."""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf
from orrery.pipeline.config.load import discover_stages, dotted_keys, list_experiments
from orrery.pipeline.config.schema import make_schema
from orrery.pipeline.errors import DatasetError
from orrery.pipeline.stage import RUN_GROUPS

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
STAGES = discover_stages()


@pytest.fixture(scope="module")
def reference():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(DOCS)
        yield importlib.import_module("reference")


@pytest.fixture(scope="module")
def makers(reference):
    return reference.makers()


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_has_a_page_with_every_config_key_and_its_meaning(name, makers, reference):
    page = makers[f"stages/{name}.md"]()
    schema = make_schema({name: (STAGES[name].Config, STAGES[name].Config())})
    leaves = [key.split(".") for key, _ in dotted_keys(OmegaConf.to_container(schema)) if key != name]
    keys = [".".join(key[:2] if key[1] in RUN_GROUPS else key) for key in leaves]
    missing = [key for key in keys if f"| `{key}` |" not in page]
    assert not missing
    unexplained = [key.name for key in reference.default_keys(name, STAGES[name]) if not key.meaning]
    assert not unexplained, "write a string under these fields"
    for part in ("## Inputs", "## Output", "## Settings", "## Cost", "## Errors"):
        assert part in page
    for name_, one in STAGES[name].inputs.items():
        assert f"| `{name_}` | {one.kind}" in page


def test_every_experiment_has_a_page(makers):
    assert {f"experiments/{name}.md" for name in list_experiments()} <= makers.keys()
    page = makers["experiments/uncertainty.md"]()
    text = (ROOT / "configs" / "experiments" / "uncertainty.yaml").read_text()
    assert text.strip() in page
    assert "| `pretrain.model.disagreement_heads` | `5` |" in page
    assert "| `pretrain.model.dropout` |" not in page, "it has its default there"


def test_the_help_of_every_command_is_shown(makers):
    page = makers["command_line.md"]()
    for part in (
        "## orrery run",
        "## orrery inspect",
        "usage: orrery study STUDY",
        "| `seeds` | `2` |",
        "| `fanout.executor` | `inline` |",
    ):
        assert part in page


def test_modules_of_the_api_pages_exist_and_every_page_is_in_the_navigation():
    pages = sorted((DOCS / "pages" / "api").glob("*.md"))
    assert pages
    for page in pages:
        assert f"- api/{page.name}" in (DOCS / "mkdocs.yml").read_text()
        for module in re.findall("^::: (.*)$", page.read_text(), flags=re.MULTILINE):
            assert importlib.util.find_spec(module), module


def test_notes_are_of_stages_that_exist():
    notes = yaml.safe_load((DOCS / "stage_notes.yaml").read_text())
    assert notes.keys() <= STAGES.keys()
    assert {key for note in notes.values() for key in note} == {"writes", "cost"}


def test_messages_are_read_from_the_source(reference, tmp_path):
    path = tmp_path / "one.py"
    path.write_text(
        "class Config:\n"
        "    def __post_init__(self):\n"
        "        raise ConfigError(\n"
        "            f'{name} must be one of {\", \".join(NAMES)}, '\n"
        "            f'found {self.value!r}' + (f'; add {extra}' if extra else '')\n"
        "        )\n"
        "def check(path):\n"
        "    raise ConfigError(f'{error}') from error\n"
        "    raise KeyError('a bug, not for users')\n"
        "    raise StageError(f'no {part(path)} there; {len(found) - 1} others')\n"
    )
    assert [(one.where, one.error, one.message) for one in reference.raised_errors(path)] == [
        ("Config.__post_init__", "ConfigError", "{name} must be one of {NAMES}, found {value}; add {extra}"),
        ("check", "StageError", "no {path} there; {...} others"),
    ]


def test_errors_of_the_parts_that_a_stage_uses_are_on_its_page(makers):
    page = makers["stages/pack.md"]()
    assert "From datasets.formats.hdf5" in page
    assert "has no transitions; expected at least one" in page
    assert "pack.sources.{name}.path is empty" in page


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((DOCS / "pages").glob("*.md"))], ids=lambda path: path.name
)
def test_local_links_lead_somewhere(path, makers):
    targets = re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", path.read_text())
    assert not [
        target for target in targets if target not in {"index.md", *makers} and not (path.parent / target).exists()
    ]


def test_troubleshooting_has_the_words_of_messages():
    headings = re.findall("^## (.*)$", (DOCS / "pages" / "troubleshooting.md").read_text(), flags=re.MULTILINE)
    assert len(headings) >= 10
    folders = ("pipeline", "datasets", "stages")
    source = "\n".join(path.read_text() for folder in folders for path in (ROOT / folder).rglob("*.py"))
    assert not [words for words in headings if not re.search(rf'"[^"\n]*{re.escape(words)}[^"\n]*"', source)]


def test_the_format_of_the_guide_reads_a_file(tmp_path):
    (code,) = re.findall(
        r'```python title="csv_format.py"\n(.*?)```', (DOCS / "pages/extending.md").read_text(), re.DOTALL
    )
    names: dict = {}
    exec(code, names)
    path = tmp_path / "cart.csv"
    path.write_text("x,v,force,reward,cut\n" + "".join(f"{t},{-t},0.5,{t},{int(t == 3)}\n" for t in range(8)))
    columns = {"observation": ["x", "v"], "action": "force", "reward": "reward", "truncated": "cut"}
    assert names["Csv"].detect(str(path), path)
    reader = names["Csv"].open(str(path), path, columns=columns)
    assert (reader.name, [len(episode) for episode in reader]) == ("csv/cart", [3, 3])
    assert [episode.rewards.tolist() for episode in reader] == [[0, 1, 2], [4, 5, 6]]
    path.write_text("x,v\n1\n")
    with pytest.raises(DatasetError, match=r"cart\.csv: is no table"):
        names["Csv"].open(str(path), path, columns=columns)


def test_pictures_stay_small():
    assert sum(path.stat().st_size for path in (DOCS / "pages" / "gallery").iterdir()) < 300_000


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_notebooks_are_saved_as_they_ran_from_top_to_bottom(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell["outputs"]]
    assert outputs
    assert not [output for output in outputs if output["output_type"] == "error"]


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=lambda path: path.stem)
def test_what_notebooks_import_is_there(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    lines = [line for cell in cells for line in "".join(cell["source"]).splitlines() if not line.startswith("%")]
    for module, names in re.findall(r"from (orrery[\w.]*) import (\([^)]*\)|.*)", "\n".join(lines)):
        for name in re.findall(r"\w+", names):
            assert hasattr(importlib.import_module(module), name), f"{module} has no {name}"

"""The report: what it shows, what it marks, and that nothing missing or malformed is passed over in silence."""

import contextlib
import json
import logging
import re
from dataclasses import asdict
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
from orrery.datasets.schema import TaskSpec
from orrery.pipeline import artifact
from orrery.pipeline.errors import StageError
from orrery.pipeline.stage import Context
from orrery.stages.evaluation.scores import AlgorithmScores, Estimate, two_decimals
from orrery.stages.figures.drawing import algorithm_styles
from orrery.stages.fqe.estimates import ValueEstimate
from orrery.stages.reporting.config import ReportConfig
from orrery.stages.reporting.page import number
from orrery.stages.reporting.results import ReportData
from orrery.stages.reporting.scoring import score_table
from orrery.stages.reporting.stage_report import Report

CUP, REACH, OTHER = "dmc/cup", "metaworld/reach-v3", "other/<script>$x$|y"
SPECS = [
    TaskSpec(CUP, 8, 2, 500, score_kind="return_per_1000"),
    TaskSpec(REACH, 39, 4, 100, score_kind="success", reports_success=True),
    TaskSpec(OTHER, 3, 1, 200),
]
SCORES = [
    ("pwm", CUP, 0, 10, 900.0, 1.0, None, 0.90),
    ("pwm", CUP, 1, 10, 800.0, 1.0, None, 0.80),
    ("pwm", REACH, 0, 10, 10.0, 1.0, 0.1, 0.06),
    ("pwm", REACH, 1, 0, None, None, None, None),
    ("bc", CUP, 0, 7, 400.0, 1.0, None, 0.40),
    ("bc", REACH, 0, 10, 700.0, 1.0, 0.7, 0.70),
    ("behaviour", CUP, 0, 20, 70.0, 1.0, None, 0.07),
    ("behaviour", REACH, 0, 20, 900.0, 1.0, 0.9, 0.90),
    ("random", CUP, 0, 10, 10.0, 1.0, None, 0.01),
]
ERROR = "RuntimeError: <b>unstable</b>"


class Progress:
    def advance(self, amount: float = 1) -> None: ...
    def note(self, text: str) -> None: ...


@contextlib.contextmanager
def progress(description: str, total: float, completed: float = 0) -> Any:
    yield Progress()


def write_store(folder: Path) -> None:
    folder.mkdir()
    entry = {"episodes": 20, "transitions": 1234, "return_mean": 70.0, "return_std": 2.0, "return_max": 99.0}
    entry |= {"behaviour": "exploration", "success_rate": None, "source": {"format": "minari", "id": "<i>x</i>-v0"}}
    entry |= {"return_min": 1.0, "terminated": 0, "length_mean": 61.7, "success_rate_last": None}
    entry |= {"observation_mean": [], "observation_std": []}
    warned = {"warnings": ["column <u>3</u> never changes"]}
    tasks = [entry | {"task": spec.name, "findings": warned if spec.name == CUP else {}} for spec in SPECS]
    (folder / "store.json").write_text(json.dumps({"format": 1, "tasks": tasks}))
    (folder / "tasks.json").write_text(json.dumps([spec.to_dict() for spec in SPECS]))


def write_world_model(folder: Path) -> None:
    folder.mkdir()
    steps = range(1, 1001)
    losses = {"step": steps, "train/total": [2.0 / step for step in steps], "train/continuation": 0.0}
    pd.DataFrame(losses).to_csv(folder / "training.csv", index=False)
    r2 = {CUP: {1: 0.9, 16: -40.0}, REACH: {1: 0.95, 16: 0.8}, OTHER: {1: None, 16: None}}
    rows = [
        {"step": step, "task": task, "horizon": horizon, "latent_mse": 0.1, "reward_r2": value}
        for step in (500, 1000)
        for task, values in r2.items()
        for horizon, value in values.items()
    ]
    pd.DataFrame(rows).to_csv(folder / "validation.csv", index=False)


def write_policies(folder: Path) -> None:
    folder.mkdir()
    runs = [(name, task, seed) for name in ("pwm", "bc") for task in (CUP, REACH) for seed in (0, 1)]
    policies = [
        {"algorithm": name, "task": task, "seed": seed, "anchor": 1.0, "path": "x"} for name, task, seed in runs
    ]
    index = {"tasks": [spec.to_dict() for spec in SPECS], "policies": policies}
    (folder / "policies.json").write_text(json.dumps(index))
    curves = [
        {"iteration": i, "algorithm": name, "task": task, "seed": seed, "imagined_reward": i if name == "pwm" else None}
        for name, task, seed in runs
        for i in (10, 20)
    ]
    pd.DataFrame(curves).to_csv(folder / "training.csv", index=False)


def write_scores(folder: Path) -> None:
    folder.mkdir()
    columns = ["algorithm", "task", "seed", "episodes", "return_mean", "return_std", "success_rate", "score"]
    pd.DataFrame(SCORES, columns=columns).to_csv(folder / "scores.csv", index=False)
    estimate = {"value": 0.6, "low": 0.5, "high": 0.7}
    failure = {"algorithm": "bc", "task": CUP, "seed": 0, "error": ERROR}
    imagined = {"algorithm": "pwm", "seed": 0, "imagined_return": 2.0}
    summary = {
        "algorithms": {
            "pwm": {"mean": estimate, "iqm": estimate, "seeds": 2},
            "behaviour": {"mean": {"value": 0.5, "low": None, "high": None}, "iqm": estimate, "seeds": 1},
        },
        "protocol": {"episodes": 10},
        "failures": [failure | {"episode": episode} for episode in range(3)],
        "skipped": {OTHER: "no environment is known"},
        "imagined": [
            imagined | {"task": CUP, "real_return": 1.9},
            imagined | {"task": REACH, "real_return": 0.1},
            imagined | {"task": REACH, "seed": 1, "real_return": None},
        ],
        "exploiting": [{"algorithm": "pwm", "task": REACH, "imagined": 2.0, "real": 0.1, "share": 0.95}],
    }
    (folder / "summary.json").write_text(json.dumps(summary))


def write_estimates(folder: Path) -> None:
    folder.mkdir()
    rows = [
        ValueEstimate("pwm", CUP, 0, 9.0, 7.0, 11.0, 5.0, imagined=40.0),
        ValueEstimate("pwm", CUP, 1, 8.0, 7.0, 9.0, 5.0, imagined=8.5),
        ValueEstimate("bc", CUP, 0, 4.0, 3.0, 5.0, 5.0),
    ]
    pd.DataFrame(map(asdict, rows)).to_csv(folder / "estimates.csv", index=False)


WRITERS = {
    "store": write_store,
    "world_model": write_world_model,
    "policies": write_policies,
    "scores": write_scores,
    "estimates": write_estimates,
}


def make_inputs(root: Path, *names: str) -> dict[str, list[Path]]:
    for name in names:
        WRITERS[name](root / name)
    return {name: [root / name] if name in names else [] for name in [*WRITERS, "datasets"]}


def write_report(root: Path, inputs: dict[str, list[Path]], run: Any = None, title: str = "") -> str:
    folder = root / "report"
    folder.mkdir()
    Report(ReportConfig(title)).run(Context(folder, inputs, 1, 1, logging.getLogger("test"), progress, run))
    return (folder / "index.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A report of everything, with the records of two stages."""
    root = tmp_path_factory.mktemp("full")
    inputs = make_inputs(root, *WRITERS)
    finish = {"config": {}, "seconds": 65.0}
    store = artifact.finish(
        inputs["store"][0], kind="store", stage="pack", key="a" * 64, inputs={}, summary="rows <1>", **finish
    )
    made_from = {"store": [artifact.InputRecord(str(inputs["store"][0]), store.digest)]}
    model = artifact.finish(
        inputs["world_model"][0], kind="world_model", stage="pretrain", key="b" * 64, inputs=made_from, summary="R2",
        **finish,
    )  # fmt: skip
    records = {"pack": asdict(store), "pretrain": asdict(model)}
    run = SimpleNamespace(folder=root, config={"name": "tiny <run>", "seed": 7}, stage_records=records)
    page = write_report(root, inputs, run)
    return SimpleNamespace(page=page, folder=root / "report", store=store)


def cell(page: str, task: str, column: int) -> str:
    """A cell of the score table, as text."""
    table = page[page.index('id="scores"') : page.index("<details>")]
    row = next(row for row in table.split("<tr>") if f">{task}<" in row)
    return " ".join(re.sub("<[^>]+>", " ", re.findall(r"<td.*?</td>", row, re.DOTALL)[column]).split())


class Strict(HTMLParser):
    """Every element closed in order, every id once, no external resource."""

    void = {"meta", "br", "link", "img", "input", "hr"}

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.links: list[str] = []
        self.figures: list[str | None] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        if tag not in self.void:
            self.open.append(tag)
        self.ids += [values["id"]] if values.get("id") else []
        self.links += [values[key] or "" for key in ("src", "href", "xlink:href") if key in values]
        if tag == "svg":
            self.figures.append(values.get("aria-label"))

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attributes)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_self_contained_and_well_formed(full: SimpleNamespace) -> None:
    parser = Strict()
    parser.feed(full.page)
    assert parser.open == []
    assert len(parser.ids) == len(set(parser.ids))
    assert parser.links
    assert all(link.startswith("#") for link in parser.links)
    assert {link[1:] for link in parser.links} <= set(parser.ids)
    assert "url(http" not in full.page
    assert "<script" not in full.page


def test_every_figure_has_a_text_alternative(full: SimpleNamespace) -> None:
    parser = Strict()
    parser.feed(full.page)
    # Mean and IQM; two suites of scores; two of imagined reward; two tasks of R2, one loss, two tasks of extraction.
    assert len(parser.figures) == 2 + 2 + 2 + 2 + 1 + 2
    assert all(parser.figures)
    assert len(set(parser.figures)) == len(parser.figures)


def test_text_from_data_is_escaped(full: SimpleNamespace) -> None:
    for raw in ("<b>unstable", "<i>x", "<u>3", "tiny <run>", "rows <1>"):
        assert raw not in full.page
        assert raw.replace("<", "&lt;").replace(">", "&gt;") in full.page


def test_failures_are_marked(full: SimpleNamespace) -> None:
    assert cell(full.page, CUP, 0) == "0.85 ± 0.07"
    assert cell(full.page, REACH, 0) == "0.06 1 run without a score below 0.1 below data"
    assert cell(full.page, CUP, 1) == "0.40 3 failed episodes"
    assert cell(full.page, REACH, 1) == "0.70 below data"
    assert cell(full.page, CUP, 3) == "0.01"  # a baseline is not a failure
    assert cell(full.page, REACH, 3) == "–"
    assert "not evaluated: no environment is known" in full.page
    returns = f"imagined return {number(2.0)}, real return {number(0.1)}."
    assert f"The world model overestimates pwm on {REACH}: {returns}" in full.page


def test_marks_count_as_failing_unless_only_below_the_data(tmp_path: Path) -> None:
    table = score_table(ReportData(make_inputs(tmp_path, *WRITERS)))
    assert table is not None
    assert [table.num_failing(name) for name in ("pwm", "bc", "random")] == [1, 1, 0]
    assert [table.num_below_data(name) for name in ("pwm", "bc", "random")] == [1, 1, 0]


def test_markdown_table(full: SimpleNamespace) -> None:
    lines = (full.folder / "scores_table.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "| task | pwm | bc | behaviour | random |"
    assert lines[2] == "| dmc/cup | 0.85 ± 0.07 | 0.40 (3 failed episodes) | 0.07 | 0.01 |"
    assert lines[4].startswith(r"| other/<script>$x$\|y | not evaluated: no environment is known |")
    assert lines[5] == "| **mean [95%]** | **0.60 [0.50, 0.70]** | **no score** | **0.50** | **no score** |"
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {6}


def test_training_time_is_shown_beside_scores_where_it_is_known(full: SimpleNamespace, tmp_path: Path) -> None:
    assert "CPU-s per policy" not in full.page
    inputs = make_inputs(tmp_path, "store", "policies", "scores")
    (folder := inputs["policies"][0] / "logs").mkdir()
    rows = [{"algorithm": "pwm", "task": CUP, "seed": seed, "cpu_seconds": 30 + 6 * seed} for seed in (0, 1)]
    pd.DataFrame(rows).to_csv(folder / "costs.csv", index=False)
    page = write_report(tmp_path, inputs)
    headline = page[page.index('class="headline"') : page.index("</table>")]
    assert re.findall(r'<td class="n">(33|–)</td>', headline) == ["33", "–", "–", "–"]
    assert '<td class="n">36</td></tr>' in page


def test_lineage_leads_back_to_the_data(full: SimpleNamespace) -> None:
    lineage = full.page[full.page.index('id="lineage"') :]
    assert f"store: pack {full.store.digest[:12]}" in lineage
    assert "2 min 10 s" in full.page  # two stages of 65 s


def test_unpredicted_reward_is_marked_and_constant_reward_named(full: SimpleNamespace) -> None:
    table = full.page[full.page.index('id="open_loop"') : full.page.index("During training")]
    assert '<td class="n weak">-40.00</td>' in table
    assert '<td class="n">0.80</td>' in table
    assert table.count("hardly varies") == 2


def test_gradients_are_shown_beside_their_skill_where_they_were_measured(full: SimpleNamespace, tmp_path: Path) -> None:
    assert 'id="model_gradients"' not in full.page
    folder = tmp_path / "gradients"
    folder.mkdir()
    rows = [
        {"task": CUP, "horizon": 5, "norm": 0.5, "return_norm": 0.0, "r2": 0.9, "cosine": None},
        {"task": CUP, "horizon": 50, "norm": 123.456, "return_norm": 2.0, "r2": 0.2, "cosine": 0.75},
    ]
    inputs = make_inputs(tmp_path, "store") | {"gradients": [folder]}
    pd.DataFrame(rows).to_csv(folder / "gradients.csv", index=False)  # of before signs were counted
    assert '<td class="n">0</td><td class="n">–</td>' in write_report(folder, inputs)
    pd.DataFrame([row | {"sign_changes": 2.5} for row in rows]).to_csv(folder / "gradients.csv", index=False)
    page = write_report(tmp_path, inputs)
    shown = page[page.index('id="model_gradients"') :]
    assert f"Gradient of the state by the first action on {CUP}: 0.5 at 5 (R2 0.90)" in shown
    assert "123</td>" in shown
    assert '<td class="n">2</td><td class="n">2.50</td>' in shown
    assert re.search(r'class="n weak">0.2\d*</td><td class="n">0.75', shown)
    assert len(re.findall("weak", shown[: shown.index("</table>")])) == 1


def test_what_finetuning_added_and_forgot_is_shown_where_there_was_any(full: SimpleNamespace, tmp_path: Path) -> None:
    assert "Finetuning" not in full.page
    inputs = make_inputs(tmp_path, "world_model")
    folder = inputs["world_model"][0]
    rows = [
        {"task": task, "new": task == REACH, "horizon": horizon, "reward_r2_before": 0.9, "reward_r2_after": after}
        for task, after in ((REACH, 0.95), (CUP, 0.4), (OTHER, 0.88))
        for horizon in (1, 16)
    ]
    pd.DataFrame(rows).to_csv(folder / "forgetting.csv", index=False)
    began = {"rule": "nearest", "nearest": CUP, "scaling": "own", "errors": {CUP: 0.25}}
    (folder / "added.json").write_text(json.dumps({"tasks": {REACH: began}}))
    page = write_report(tmp_path, inputs)
    section = page[page.index('<section id="finetuning"') :].split("</section>")[0]
    assert section.count("<tr>") == 4  # at the longest horizon, beside the heading
    assert section.count('class="n weak"') == 1  # what lost half a point, not two hundredths
    assert re.search(rf"{CUP}</th><td>old</td>.*16.*0\.9.*weak\">0\.4", section, re.DOTALL)
    assert f"{REACH}: embedding initialised from {CUP}, observations scaled by its own data" in " ".join(
        section.split()
    )


def test_missing_inputs_are_named(tmp_path: Path) -> None:
    page = write_report(tmp_path, make_inputs(tmp_path), title="Nothing yet")
    assert "<title>Nothing yet</title>" in page
    said = re.findall(r'<p class="missing">(.*?)</p>', page)
    assert [line.partition(":")[0] for line in said] == [
        "Result", "Scores by task", "Scores by algorithm", "Scores by seed", "Imagined and real return",
        "Open-loop prediction of reward", "Losses of the world model", "Extraction", "Data", "Configuration", "Stages",
        "Lineage",
    ]  # fmt: skip
    assert (tmp_path / "report" / "scores_table.md").read_text().startswith("No scores")


@pytest.mark.parametrize("name", WRITERS)
def test_any_one_input_is_enough(tmp_path: Path, name: str) -> None:
    page = write_report(tmp_path, make_inputs(tmp_path, name))
    shown = {"store": "data", "world_model": "losses", "policies": "extraction", "scores": "result"}
    assert f'<section id="{shown.get(name, name)}">' in page


def test_evaluation_in_which_every_run_failed(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, "scores")
    folder = inputs["scores"][0]
    pd.read_csv(folder / "scores.csv").assign(score=None).to_csv(folder / "scores.csv", index=False)
    (folder / "summary.json").write_text("{}")
    page = write_report(tmp_path, inputs)
    assert cell(page, CUP, 0) == "no score, return 850 2 runs without a score"


def test_world_model_without_a_training_record_is_not_an_error(tmp_path: Path) -> None:
    (tmp_path / "downloaded").mkdir()
    page = write_report(tmp_path, {"world_model": [tmp_path / "downloaded"]})
    assert "Losses of the world model: not available, because the world model has no training.csv" in page
    assert "reward: not available, because the world model has no validation.csv" in page


def left_out(page: str) -> dict[str, str]:
    return dict(re.findall(r'<p class="missing">(.*?): not available, because (.*?)\.</p>', page))


def test_a_missing_part_names_the_stage_that_would_make_it(tmp_path: Path) -> None:
    run = SimpleNamespace(config={"stages": ["pack", "pretrain", "extract", "report"]}, stage_records={})
    page = write_report(tmp_path, make_inputs(tmp_path), run)
    said = left_out(page)
    assert said["Data"] == "pack has not finished"
    assert said["Losses of the world model"] == "pretrain has not finished"
    assert said["Extraction"] == "extract has not finished"
    assert said["Result"] == "no stage of this run produces scores, and inputs.scores is not set"
    assert "No scores: no stage of this run produces scores" in (tmp_path / "report" / "scores_table.md").read_text()


def test_a_missing_part_names_what_its_input_lacks(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, *WRITERS)
    model, policies, scores = (inputs[name][0] for name in ("world_model", "policies", "scores"))
    for file in ("training.csv", "validation.csv"):
        pd.read_csv(model / file)[:0].to_csv(model / file, index=False)
    index = json.loads((policies / "policies.json").read_text())
    index["policies"] = [entry for entry in index["policies"] if entry["algorithm"] == "bc"]
    (policies / "policies.json").write_text(json.dumps(index))
    (policies / "training.csv").unlink()
    pd.read_csv(scores / "scores.csv")[:0].to_csv(scores / "scores.csv", index=False)
    summary = json.loads((scores / "summary.json").read_text())
    (scores / "summary.json").write_text(json.dumps({"skipped": summary["skipped"]}))
    said = left_out(write_report(tmp_path, inputs))
    assert "pretrain.trainer.log_every" in said["Losses of the world model"]
    assert "no episode was held out" in said["Open-loop prediction of reward"]
    assert said["Imagined and real return"] == "the policies (bc) were not trained in imagination"
    assert said["Extraction"].startswith(f"{said['Imagined and real return']}; with extract.evaluate_every=100")
    assert said["Result"].startswith("the evaluation has no score; other/")
    assert said["Result"].endswith("no environment is known")


def test_returns_during_extraction_are_shown_without_imagined_rewards(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, "policies")
    file = inputs["policies"][0] / "training.csv"
    played = pd.read_csv(file).drop(columns="imagined_reward")
    played.assign(evaluation_return=played["iteration"] * 1.0).to_csv(file, index=False)
    page = write_report(tmp_path, inputs)
    assert "Extraction" not in left_out(page)
    assert "return in the environment" in page
    assert "Imagined reward per step over short rollouts" not in page


def test_a_model_that_predicts_no_reward_is_not_called_one_of_constant_rewards(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, "world_model")
    file = inputs["world_model"][0] / "validation.csv"
    pd.read_csv(file).assign(reward_r2=None, observation_r2=0.9).to_csv(file, index=False)
    page = write_report(tmp_path, inputs)
    assert left_out(page)["Open-loop prediction of reward"] == "this world model predicts observations, not rewards"


def test_damaged_inputs_name_the_file(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, "scores")
    folder = inputs["scores"][0]
    scores = pd.read_csv(folder / "scores.csv").rename(columns={"score": "points"})
    scores.to_csv(folder / "scores.csv", index=False)
    with pytest.raises(StageError, match=r"scores\.csv lacks columns score; it has: .*points"):
        _ = ReportData(inputs).scores
    (folder / "scores.csv").unlink()
    (folder / "summary.json").write_text('{"algorithms": ')
    with pytest.raises(StageError, match=r"summary\.json is not JSON"):
        _ = ReportData(inputs).summary


def test_same_inputs_give_the_same_page(tmp_path: Path) -> None:
    inputs = make_inputs(tmp_path, *WRITERS)
    pages = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        pages.append(write_report(tmp_path / name, inputs))
    assert pages[0] == pages[1]


def test_algorithms_keep_their_colour_and_never_take_a_baselines() -> None:
    styles = algorithm_styles(["pwm", "bc", "behaviour", "random"])
    assert algorithm_styles(["pwm", "behaviour"])["pwm"] == styles["pwm"]
    assert len(set(styles.values())) == 4
    many = algorithm_styles([f"pwm@{i}" for i in range(30)])
    assert len({many[f"pwm@{i}"] for i in range(30)}) == 30


def test_number_formats() -> None:
    assert [number(value) for value in (None, float("nan"), 0.0, 1234.0, 1234.5, 12.34, 0.5, 0.01234)] == [
        "–", "–", "0", "1,234", "1,234", "12.3", "0.50", "0.012",
    ]  # fmt: skip
    assert two_decimals(-0.001) == "0.00"
    assert str(Estimate(0.5)) == "0.50"
    assert str(Estimate(0.5, 0.4, 0.6)) == "0.50 [0.40, 0.60]"
    assert AlgorithmScores().text() == "no score"
    assert AlgorithmScores(returns={"a": 812.25}).text() == "no score, return 812.2"
    assert AlgorithmScores(returns={"a": 812.25, "b": -3.0}).text() == "no score, returns -3 to 812.2"
    assert AlgorithmScores(iqm=Estimate(0.5), tasks=3, of_tasks=4).text("iqm") == "0.50 on 3 of 4 tasks"


def test_estimated_values_stand_beside_real_returns_and_name_the_selected_policy(tmp_path):
    page = write_report(tmp_path, make_inputs(tmp_path, "scores", "estimates"))
    section = page[page.rindex("Values estimated from the data") :]
    section = section[section.index("<table>") : section.index("</table>")]
    rows = [re.sub(r"<[^>]+>", " ", row).split() for row in section.split("<tr>")[2:]]
    real = {(name, seed): value for name, task, seed, _, value, *_ in SCORES if task == CUP}
    assert [row[1:3] for row in rows] == [["pwm", "0"], ["pwm", "1"], ["bc", "0"]]
    assert [float(row[-1]) for row in rows] == [real["pwm", 0], real["pwm", 1], real["bc", 0]]
    assert '<b>pwm</b></td><td class="n">0' in section
    assert section.count('class="n weak"') == 1

"""The stage report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ...datasets.facts import read_store_facts
from ...pipeline.stage import Context, Input, Stage
from ...pipeline.wording import counted
from .config import ReportConfig


class Report(Stage):
    """Write a run's report: a self-contained HTML page and a Markdown score table."""

    Config = ReportConfig
    inputs = {
        "datasets": Input("datasets", optional=True, many=True),
        "store": Input("store", optional=True, facts=read_store_facts),
        "world_model": Input("world_model", optional=True),
        "gradients": Input("gradients", optional=True),
        "policies": Input("policies", optional=True, many=True),
        "scores": Input("scores", optional=True),
        "estimates": Input("estimates", optional=True),
    }
    output_kind = "report"
    about_run = True
    config: ReportConfig

    def check_inputs(self, inputs: Mapping[str, Sequence[Any]]) -> None:
        if self.config.videos:
            from .videos import check_videos

            check_videos(task for facts in inputs.get("store", ()) if facts is not None for task in facts.tasks)

    def run(self, context: Context) -> str:
        from .page import render_page
        from .reasons import no_scores
        from .results import ReportData
        from .scoring import markdown_table, score_table

        with context.progress("report", total=2) as progress:
            data = ReportData(context.inputs, context.run)
            videos = None
            if self.config.videos:
                from .videos import record_videos

                videos = record_videos(data, context.workers, progress)
            page = render_page(data, self.config.title, videos)
            progress.advance()
            (context.folder / "index.html").write_text(page, encoding="utf-8")
            table = score_table(data)
            markdown = f"No scores: {no_scores(data)}.\n" if table is None else markdown_table(table)
            (context.folder / "scores_table.md").write_text(markdown, encoding="utf-8")
            progress.advance()
        if table is None:
            return "report written; no scores"
        failing = sum(table.num_failing(name) for name in table.algorithms)
        return f"report written; {counted(failing, 'score')} flagged as failing"

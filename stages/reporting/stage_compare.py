"""The stage compare."""

from __future__ import annotations

from ...pipeline.stage import Context, Input, Stage
from .config import CompareConfig


class Compare(Stage):
    """Compare the variants of a study on one page, with tables and figures.

    `orrery study` runs this stage in the study folder, on all finished variants.
    """

    Config = CompareConfig
    inputs = {
        "world_model": Input("world_model", optional=True, many=True),
        "gradients": Input("gradients", optional=True, many=True),
        "policies": Input("policies", optional=True, many=True),
        "scores": Input("scores", optional=True, many=True),
    }
    output_kind = "comparison"
    about_run = True
    config: CompareConfig

    def run(self, context: Context) -> str:
        from .study_figures import draw_png
        from .study_page import render_study
        from .study_results import read_results, score_text

        config = self.config
        with context.progress("compare", total=2) as progress:
            results = read_results(config.variants, context.run.folder)
            for name, table in results.tables.items():
                table.to_csv(context.folder / f"{name}.csv", index=False)
            progress.advance()
            if not results.scores.empty:
                (context.folder / "scores.txt").write_text(score_text(results, context.run.folder), encoding="utf-8")
                draw_png(results, context.folder / "study.png")
            page = render_study(results, config.title, config.description)
            (context.folder / "study.html").write_text(page, encoding="utf-8")
            progress.advance()
        complete = sum(not variant.problem for variant in config.variants.values())
        return f"{results.spread or 'no scores'}; {complete} of {len(config.variants)} variants complete"

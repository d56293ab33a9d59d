"""Why a section of the report is not available: a stage that has not finished, or missing data of an input."""

from __future__ import annotations

from ...pipeline.config.load import discover_stages
from .results import ReportData

WORDS = {"store": "a store", "world_model": "a world model", "policies": "policies", "scores": "scores"}
"""Names of the report's inputs in sentences."""


def no_input(data: ReportData, *names: str) -> str:
    """Why the first missing one of these inputs is missing; empty if none is."""
    name = next((name for name in names if not data.inputs.get(name)), "")
    if not name:
        return ""
    makers = [stage for stage, cls in discover_stages().items() if cls.output_kind == name]
    listed = [stage for stage in makers if stage in data.config.get("stages", ())]
    if listed:
        return f"{' and '.join(listed)} {'have' if len(listed) > 1 else 'has'} not finished"
    return f"no stage of this run produces {WORDS[name]}, and inputs.{name} is not set"


def no_scores(data: ReportData) -> str:
    """Return why there are no scores."""
    return no_input(data, "scores") or "the evaluation has no score" + _skipped(data)


def no_losses(data: ReportData) -> str:
    """Return why there is no curve of training losses."""
    if data.has_file("world_model", "training.csv"):
        return "training took fewer steps than pretrain.trainer.log_every, so no loss was logged"
    none = "the world model has no training.csv; imported models have none"
    return no_input(data, "world_model") or none


def no_validation(data: ReportData) -> str:
    """Return why there is no curve of validation errors."""
    if data.validation is not None:
        return "this world model predicts observations, not rewards"
    if data.has_file("world_model", "validation.csv"):
        return "no episode was held out for validation; use more episodes per task or a larger held_out"
    none = "the world model has no validation.csv; imported models have none"
    return no_input(data, "world_model") or none


def no_imagination(data: ReportData) -> str:
    """Why no policy has both an imagined and a real return."""
    if all(row.imagined_return is None for row in data.summary.imagined):
        return no_input(data, "policies", "scores") or _do_not_imagine(data)
    return no_input(data, "policies") or "no policy with an imagined return was evaluated" + _skipped(data)


def no_curves(data: ReportData) -> str:
    """Return why there are no curves of policy training."""
    return no_input(data, "policies") or (
        f"{_do_not_imagine(data)}; with extract.evaluate_every=100, it would show what policies of extract earn while "
        "they learn"
    )


def _do_not_imagine(data: ReportData) -> str:
    names = dict.fromkeys(entry["algorithm"] for entry in data.policies)
    return f"the policies ({', '.join(names) or 'none'}) were not trained in imagination"


def _skipped(data: ReportData) -> str:
    return "".join(f"; {task}: {reason}" for task, reason in data.summary.skipped.items())

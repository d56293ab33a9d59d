"""Why a section of the report is not available: a stage that has not finished, or missing data of an input."""

from __future__ import annotations

from collections.abc import Mapping

from ...pipeline.config.load import discover_stages
from .evidence import Evidence

WORDS: Mapping[str, str] = {
    "store": "a store",
    "world_model": "a world model",
    "policies": "policies",
    "scores": "scores",
}
"""Names of the report's inputs in sentences."""


def no_input(evidence: Evidence, name: str) -> str:
    """Why the report has no input `name`."""
    makers = [stage for stage, cls in discover_stages().items() if cls.output_kind == name]
    listed = [stage for stage in makers if stage in evidence.config.get("stages", ())]
    if listed:
        return f"{' and '.join(listed)} {'have' if len(listed) > 1 else 'has'} not finished"
    return f"no stage of this run produces {WORDS[name]}, and inputs.{name} is not set"


def no_scores(evidence: Evidence) -> str:
    """Return why there are no scores."""
    if "scores" not in evidence.given:
        return no_input(evidence, "scores")
    return "the evaluation has no score" + _skipped(evidence)


def no_losses(evidence: Evidence) -> str:
    """Return why there is no curve of training losses."""
    if "world_model" not in evidence.given:
        return no_input(evidence, "world_model")
    if "training.csv" in evidence.empty:
        return "training took fewer steps than pretrain.trainer.log_every, so no loss was logged"
    return "the world model has no training.csv; imported models have none"


def no_validation(evidence: Evidence) -> str:
    """Return why there is no curve of validation errors."""
    if "world_model" not in evidence.given:
        return no_input(evidence, "world_model")
    if "validation.csv" in evidence.empty:
        return "no episode was held out for validation; use more episodes per task or a larger held_out"
    if evidence.validation is not None:
        return "this world model predicts observations, not rewards"
    return "the world model has no validation.csv; imported models have none"


def no_imagination(evidence: Evidence) -> str:
    """Why no policy has both an imagined and a real return."""
    if "policies" not in evidence.given:
        return no_input(evidence, "policies")
    if "scores" not in evidence.given:
        return no_input(evidence, "scores")
    imagined = [row for row in evidence.summary.get("imagined", []) if row["imagined_return"] is not None]
    if not imagined:
        return _do_not_imagine(evidence)
    return "no policy with an imagined return was evaluated" + _skipped(evidence)


def no_curves(evidence: Evidence) -> str:
    """Return why there are no curves of policy training."""
    if "policies" not in evidence.given:
        return no_input(evidence, "policies")
    return _do_not_imagine(evidence)


def _do_not_imagine(evidence: Evidence) -> str:
    names = dict.fromkeys(entry["algorithm"] for entry in evidence.policies)
    return f"the policies ({', '.join(names) or 'none'}) were not trained in imagination"


def _skipped(evidence: Evidence) -> str:
    reasons = evidence.summary.get("skipped", {})
    return "".join(f"; {task}: {reason}" for task, reason in reasons.items())

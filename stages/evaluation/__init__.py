"""Evaluation of policies in their real environments, and scores with intervals."""

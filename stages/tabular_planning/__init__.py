"""Tabular model-based planning: count, normalise, solve."""

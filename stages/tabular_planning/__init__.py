"""Tabular model-based planning: count, normalise, solve as if the model were right. The folder of the stage `tabular`."""

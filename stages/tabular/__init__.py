"""Tabular model-based planning: count, normalise, solve as if the model were right. Folder of the stage `tabular`."""

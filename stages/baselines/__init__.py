"""Learners from other libraries, trained on the same tasks."""

"""Variants of an experiment, and rounds of one."""

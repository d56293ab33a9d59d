"""Policies played in the real environments, and their scores with intervals."""

"""Diagnostics of gradients through world models."""

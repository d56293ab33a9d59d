"""Policies that plan through a frozen model at every step."""

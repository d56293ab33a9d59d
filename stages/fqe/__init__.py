"""Fitted Q evaluation of policies on recorded data."""

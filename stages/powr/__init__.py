"""POWR: a conditional-mean-embedding world model and policy mirror descent on its closed-form action values."""

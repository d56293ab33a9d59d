"""POWR: a conditional-mean-embedding world model and policy mirror descent on its closed-form action values.

    kernels      similarity of states                  actions     of actions: one of A choices, or a candidate set
    transitions  rows from episodes, terminal sinks    centres     which rows carry a weight
    evaluation   fit, and the one-solve action values  stability   spectral radius, singular systems
    improvement  mirror descent, one weight per row    policy      the resulting Policy

Source: POWR (arXiv 2406.19861). Differences from the released code: the reward of a terminating transition is kept
(it stores 0), centres are seeded, one m x m solve replaces G^-1 and an eigendecomposition.
"""

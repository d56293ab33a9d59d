"""Policies by backpropagation through imagined episodes of a frozen sequence model (BPO)."""

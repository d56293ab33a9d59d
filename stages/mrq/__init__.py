"""MR.Q: values over a representation that is trained as a linear model of the decision process."""

"""What every algorithm ends in: a policy, its index, and how both are loaded."""

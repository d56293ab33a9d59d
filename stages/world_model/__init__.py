"""The latent multi-task world model (TD-MPC2's): networks, losses, training, diagnostics."""

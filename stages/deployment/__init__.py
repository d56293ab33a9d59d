"""Policies outside of the pipeline: export to ONNX and torch.export, and videos of episodes."""

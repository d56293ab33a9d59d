"""Policies outside of the pipeline: exported to ONNX and torch.export, and played on film."""

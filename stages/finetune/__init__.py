"""New tasks for a pretrained world model."""

"""From YAML and overrides to frozen dataclasses."""

"""Generated data: episodes that a model of observations imagines, beside the real ones."""

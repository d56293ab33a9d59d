"""One world model on all tasks of a store."""

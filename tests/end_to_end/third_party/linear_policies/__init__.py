"""Linear policies by ridge regression, datasets in JSON lines, and an executor with one process after another."""

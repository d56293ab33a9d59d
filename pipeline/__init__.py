"""What every stage shares: config, artifacts, the runner and the command line. Knows no algorithm."""

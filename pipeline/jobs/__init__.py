"""Work as jobs, and the executors that run them."""

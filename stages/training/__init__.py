"""Lightning set-up, exact resume and process groups."""

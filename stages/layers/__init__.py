"""Network parts that several algorithms share."""

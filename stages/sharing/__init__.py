"""What is published of an artifact: its folder without what only training needed, its provenance, and its card."""

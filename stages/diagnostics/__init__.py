"""What gradients through a world model are like."""

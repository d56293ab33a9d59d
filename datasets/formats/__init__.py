"""Other people's datasets as episodes: one file per format."""

"""From simulators and other people's files to one store."""

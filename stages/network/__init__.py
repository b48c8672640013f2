"""The networks, and their weights as a file."""

"""Process groups, logs and random streams."""

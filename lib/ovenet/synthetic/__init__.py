"""Street scenes drawn by the project itself, for tests and first steps."""

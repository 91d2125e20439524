"""Trained models: read from a file or run, predict, share, export."""

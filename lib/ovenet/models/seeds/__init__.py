"""Seed pixels: offset head, resampling and fusion, and the controls that experiments compare them with."""

"""Trained networks over images: windows, scales, flipped views, and what becomes of the predictions."""

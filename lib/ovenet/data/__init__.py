"""Datasets: facts, files, transforms and order."""

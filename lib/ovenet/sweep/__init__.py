"""Sweeps: many runs of one experiment, executed and summarised."""

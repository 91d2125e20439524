"""A page on this machine to try models on photographs and short videos."""

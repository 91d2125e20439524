"""Many runs of one experiment: which are missing, running them, and what they say together."""

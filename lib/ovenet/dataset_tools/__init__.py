"""Beside the core: datasets drawn, drafted from folders, converted from annotations, and audited."""

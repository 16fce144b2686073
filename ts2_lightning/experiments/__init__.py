"""Runs that belong together: the toy world's base model, the quickstart's comparison, grids of runs."""

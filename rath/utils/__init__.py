"""Small helpers that stand on nothing else in rath."""

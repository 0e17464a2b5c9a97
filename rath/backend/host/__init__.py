"""Workspaces as directories of the host: paths that cannot leave them, copies, directories of our own, comparisons."""

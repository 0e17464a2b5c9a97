"""The backend without an engine: namespaces made by bubblewrap."""

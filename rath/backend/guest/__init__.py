"""The program that runs inside a sandbox, and the host's side of the conversation with it."""

"""The ``docker`` backend: containers of the Docker Engine."""

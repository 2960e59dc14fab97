"""Models as folders: what can be seen of one without loading it, and loading it."""

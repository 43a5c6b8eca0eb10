"""Making builds and measuring them, in child processes, and keeping them in the cache."""

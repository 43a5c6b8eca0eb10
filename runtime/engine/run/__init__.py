"""Opening a build and running it: whole, in parts or in strips, and the memory that takes."""

"""Which graphs of a bundle are open, and what they cost."""

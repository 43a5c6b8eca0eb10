"""Models that Tintype makes itself: their data, training and judges."""

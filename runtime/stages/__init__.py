"""The stages of a picture, each a function of a `Context`."""

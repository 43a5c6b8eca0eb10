"""Families of models: what each asks of its graphs."""

"""Marks that say of a picture that it is made, and what reads them back: numpy and Pillow alone, no model."""

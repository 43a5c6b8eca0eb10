"""Pixels: latents to pictures, and pictures to files that carry their record. Pillow is imported when it is used."""

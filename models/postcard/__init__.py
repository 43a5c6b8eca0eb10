"""Postcard: a tiny text-to-image model of an unlimited world of captioned picture postcards."""

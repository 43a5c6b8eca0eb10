"""What devices and processors there are here, what they can do and what they are busy with."""

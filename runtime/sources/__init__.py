"""What a published checkpoint is, told by names, shapes and configs alone: no weight is read, torch isn't needed."""

"""Data sets: where images come from, how they are stored and split, in which order they are read, and augmentation."""

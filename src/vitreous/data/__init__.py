"""Where pictures come from, the one form they take, their order, and their augmentation."""

"""Side by side with other libraries: the same weights and data, values first, then times."""

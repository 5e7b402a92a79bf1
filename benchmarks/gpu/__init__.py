"""What a GPU makes of the library: twins first, then times next to other libraries."""

"""One library each: what it makes of every job, in the layout of parameters that all share."""

"""One module for each library: its version of every job, in a common layout of parameters."""

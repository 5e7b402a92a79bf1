"""Layer capture: every layer's inputs and output gradients, for any JAX function."""

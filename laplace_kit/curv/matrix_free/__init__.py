"""Matrix-free algorithms, which only need products: estimates, eigenpairs, linear solvers."""

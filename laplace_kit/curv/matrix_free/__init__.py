"""What products alone are enough for: estimates, eigenpairs and solutions, thin over matfree."""

"""`python -m laplace_kit`, the same as `laplace-kit`."""

from laplace_kit.cli import main

if __name__ == "__main__":
    main(prog_name="laplace-kit")

"""What every test shares: reproducible hypothesis examples and double precision on request."""

import jax
import pytest
from hypothesis import settings

# Each example may compile a new program: few of them, the same in every run, and none is late.
settings.register_profile("laplace_kit", deadline=None, derandomize=True, max_examples=10)
settings.load_profile("laplace_kit")


@pytest.fixture
def x64():
    """Compute in float64 for the length of one test."""
    with jax.enable_x64(True):
        yield

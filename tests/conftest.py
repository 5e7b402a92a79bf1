"""What every test shares: reproducible hypothesis examples and double precision on request."""

import os
from pathlib import Path

import jax
import pytest
from hypothesis import settings

# Compiling is most of a test's time, so XLA does little of it; `make test-slow` has it do all.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)

# Each example may compile a new program: few of them, the same in every run, and none is late.
settings.register_profile("laplace_kit", deadline=None, derandomize=True, max_examples=10)
settings.load_profile("laplace_kit")


@pytest.fixture
def x64():
    """Compute in float64 for the length of one test."""
    with jax.enable_x64(True):
        yield


# Linux gives a process some 65,000 memory mappings, and each compiled program takes a few: past
# that, compiling is a segmentation fault.
_MANY_MAPPINGS = 25_000


@pytest.fixture(autouse=True, scope="module")
def few_programs():
    """Forget compiled programs before there are too many of them for the operating system."""
    yield
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        jax.clear_caches()

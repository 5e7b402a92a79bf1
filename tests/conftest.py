"""What every test shares: compiled programs, reproducible examples, float64 on request."""

import contextlib
import functools
import gc
import os
import platform
import shutil
import tempfile
import time
import zlib
from pathlib import Path

import checking
import jax
import jaxtyping
import pytest
from hypothesis import settings
from jax._src import pjit
from jax._src.interpreters import mlir, pxla

jaxtyping.jaxtyped = checking.typed

# A context of MLIR takes longer to make than most programs take to lower: the programs of one file
# of tests share it, as later versions of JAX let some ten programs do.
mlir.make_ir_context = functools.cache(mlir.make_ir_context)

# Compiling is most of a test's time, so XLA does little of it; `make test-slow` has it do all.
if "JAX_DISABLE_MOST_OPTIMIZATIONS" not in os.environ:
    jax.config.update("jax_disable_most_optimizations", True)
    # In one piece and without LLVM's slower passes: the workers keep all processors busy anyway.
    flags = "--xla_cpu_parallel_codegen_split_count=1 --xla_llvm_disable_expensive_passes=true"
    if jax.__version_info__ < (0, 11):
        # The older emitters of loops take half as long; later versions know the flag no more.
        flags += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flags}"


# Importing and collecting makes no garbage worth a hunt.
gc.disable()


def pytest_configure(config):
    """Share compiled programs among the processes of one run, and with the runs that follow."""
    if not hasattr(config, "workerinput"):  # a worker of pytest-xdist has that of its parent
        os.environ["JAX_COMPILATION_CACHE_DIR"] = _programs(config)
        os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
        # The workers are as many as the processors: threads of BLAS would but wait, and busily.
        os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    jax.config.update("jax_compilation_cache_dir", os.environ["JAX_COMPILATION_CACHE_DIR"])
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


def _programs(config) -> str:
    """Return the folder of compiled programs, without those that no run has read for a week.

    It is within `.pytest_cache`. JAX names a program by all that it is compiled from and with,
    apart from the processor, which names the folder.
    """
    if not config.pluginmanager.hasplugin("cacheprovider"):
        folder = tempfile.mkdtemp(prefix="programs-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
        return folder
    described = Path("/proc/cpuinfo")
    lines = described.read_text().splitlines() if described.exists() else [platform.platform()]
    processor = "".join(line for line in lines if not line.startswith(("cpu MHz", "bogomips")))
    folder = config.cache.mkdir(f"programs-{zlib.crc32(processor.encode()):08x}")
    for program in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run removes it, too
            status = program.stat()
            if max(status.st_atime, status.st_mtime) < time.time() - 7 * 24 * 3600:
                program.unlink()
    return str(folder)


def pytest_collection_finish():
    """Look less often for garbage: tracing makes many objects, nearly all of them gone at once."""
    gc.freeze()
    gc.enable()
    gc.set_threshold(50_000)


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
    """Forget what was compiled from, and the programs before there are too many of them."""
    yield
    # JAX keeps the MLIR of each program, 1.5 MB that nothing reads again: lowering the next one
    # then takes the longer the more there are. JAX has no public name for these caches.
    for cached in (pjit._pjit_lower, pxla._cached_lowering_to_hlo, mlir.make_ir_context):
        cached.cache_clear()
    mappings = Path("/proc/self/maps")
    if mappings.exists() and mappings.read_bytes().count(b"\n") > _MANY_MAPPINGS:
        jax.clear_caches()

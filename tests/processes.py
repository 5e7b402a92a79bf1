"""Functions of a test module run by several real processes, on devices of the CPU each.

`run` starts the processes, which talk over the loopback, calls every function of a module whose
name begins with `check_` in each of them, and returns what the functions returned.
"""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

NUM_DEVICES = 4  # of all processes together


class Place(NamedTuple):
    """Where data lie: over all devices of all processes, or on one device of a single process."""

    mesh: Mesh | None = None

    def rows(self, array: np.ndarray) -> np.ndarray | jax.Array:
        """Return an array with its rows spread over the processes; each makes its own part."""
        if self.mesh is None:
            return array
        sharding = NamedSharding(self.mesh, PartitionSpec("data"))
        return jax.make_array_from_process_local_data(sharding, self.own(array))

    def columns(self, array: np.ndarray) -> np.ndarray | jax.Array:
        """Return a matrix with its columns spread over all devices."""
        if self.mesh is None:
            return array
        sharding = NamedSharding(self.mesh, PartitionSpec(None, "data"))
        return jax.make_array_from_callback(array.shape, sharding, lambda place: array[place])

    def own(self, array: np.ndarray) -> np.ndarray:
        """Return the rows that this process makes."""
        if self.mesh is None:
            return array
        return np.array_split(array, jax.process_count())[jax.process_index()]

    def own_unevenly(self, array: np.ndarray) -> np.ndarray:
        """Return the rows of this process, where the second has twice as many as the first."""
        if self.mesh is None:
            return array
        shares = np.cumsum(np.arange(jax.process_count() + 1))
        return np.split(array, len(array) * shares[1:-1] // shares[-1])[jax.process_index()]

    def whole(self, array: np.ndarray) -> np.ndarray | jax.Array:
        """Return an array that every device has whole."""
        if self.mesh is None:
            return array
        return jax.device_put(array, NamedSharding(self.mesh, PartitionSpec()))

    def whole_tree(self, tree):
        """Return `whole` of every leaf."""
        return jax.tree.map(self.whole, tree)


class Outcome(NamedTuple):
    """What a check returned, or the traceback of its error."""

    arrays: dict[str, np.ndarray]
    error: str


def run(
    module: str, folder: Path, num: int = 2, names: Iterable[str] = (), *, timeout: float
) -> list[dict[str, Outcome]]:
    """Return the outcome of every check in each process.

    Parameters
    ----------
    module
        The file of the test module.
    folder
        Where results and what the processes print go; the checks may write there, too.
    num
        The number of processes, which divide the devices among themselves.
    names
        The checks to call; all of them by default.
    timeout
        In seconds, for all processes together.

    Raises
    ------
    AssertionError
        If a process ends with an error, or not in time; with the end of what all of them printed.
    """
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    here = Path(__file__).parent
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo",
        "JAX_NUM_CPU_DEVICES": str(NUM_DEVICES // num),
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (here, here.parent))),
    }
    printed = [folder / f"process{rank}.txt" for rank in range(num)]
    processes = []
    try:
        for rank in range(num):
            own = (module, folder, rank, num, port)
            command = [sys.executable, __file__, *map(str, own), *names]
            with printed[rank].open("w") as output:
                processes.append(
                    subprocess.Popen(
                        command, env=environment, stdout=output, stderr=subprocess.STDOUT
                    )
                )
        _wait(processes, time.monotonic() + timeout)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    ends = "".join(f"\n--- {path.name}\n{path.read_text()[-6000:]}" for path in printed)
    codes = [process.returncode for process in processes]
    assert codes == [0] * num, f"exit codes {codes} (-9: killed after {timeout} s){ends}"
    return [_read(folder / f"process{rank}.npz") for rank in range(num)]


def _wait(processes: list[subprocess.Popen], end: float) -> None:
    """Wait until all have ended, or one of them with an error, or the time is over."""
    while time.monotonic() < end:
        codes = [process.poll() for process in processes]
        if all(code == 0 for code in codes) or any(codes):
            return
        time.sleep(0.05)


def _read(path: Path) -> dict[str, Outcome]:
    outcomes: dict[str, Outcome] = {}
    with np.load(path) as archive:
        for key in archive.files:
            check, _, name = key.partition("/")
            outcome = outcomes.setdefault(check, Outcome({}, ""))
            if name:
                outcome.arrays[name] = archive[key]
            elif archive[key].size:
                outcomes[check] = outcome._replace(error=str(archive[key]))
    return outcomes


def checks_of(module: str) -> dict:
    """Return the functions of a test module that begin with `check_`, by name."""
    spec = importlib.util.spec_from_file_location(Path(module).stem, module)
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return {name: value for name, value in vars(found).items() if name.startswith("check_")}


def _work(module: str, folder: str, rank: str, num: str, port: str, *names: str) -> None:
    """Call every check in this process, one of several, and write what they return."""
    jax.distributed.initialize(f"localhost:{port}", int(num), int(rank))
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    place, found = Place(mesh), {}
    for name, check in checks_of(module).items():
        if names and name not in names:
            continue
        start = time.monotonic()
        found[f"{name}/"] = np.array("")
        try:
            arrays = check(place, Path(folder))
            found |= {f"{name}/{key}": np.asarray(value) for key, value in arrays.items()}
        except Exception:  # for its own test to show; the others go on
            found[f"{name}/"] = np.array(traceback.format_exc())
        print(f"{name}: {time.monotonic() - start:.1f} s", flush=True)
    np.savez(Path(folder) / f"process{rank}.npz", **found)


if __name__ == "__main__":
    _work(*sys.argv[1:])

"""Facts about this machine: versions, devices and memory, for `laplace-kit info`."""

import os
import platform
from collections.abc import Mapping
from importlib import metadata
from typing import Any

from laplace_kit import __version__

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "matfree", "numpy")


def facts() -> dict[str, Any]:
    """Return versions, devices and memory; a `ValueError` if JAX finds no device."""
    import jax

    from laplace_kit.memory import Limits

    try:
        devices = jax.local_devices()
    except RuntimeError as error:
        raise ValueError(f"JAX finds no device: {' '.join(str(error).split())}") from error
    return {
        "versions": {
            "laplace-kit": __version__,
            "python": platform.python_version(),
            **{package: _version(package) for package in _PACKAGES},
        },
        "platform": platform.platform(),
        "devices": [
            {
                "platform": device.platform,
                "kind": device.device_kind,
                "memory_bytes": (device.memory_stats() or {}).get("bytes_limit"),
            }
            for device in devices
        ],
        "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        "memory_budget_bytes": Limits().budget,
        "x64": bool(jax.config.jax_enable_x64),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def as_lines(facts: Mapping[str, Any]) -> str:
    """Return the facts as lines of text."""
    from laplace_kit.memory import readable

    lines = {name: version or "not installed" for name, version in facts["versions"].items()}
    lines["platform"] = facts["platform"]
    for k, device in enumerate(facts["devices"]):
        held = device["memory_bytes"]
        lines[f"device {k}"] = f"{device['platform']}, {device['kind']}" + (
            f", {readable(held)}" if held else ""
        )
    lines["memory of the machine"] = readable(facts["memory_bytes"])
    lines["memory for one operation"] = readable(facts["memory_budget_bytes"])
    lines["64-bit numbers"] = "on" if facts["x64"] else "off"
    width = max(map(len, lines)) + 2
    return "\n".join(f"{name:<{width}}{text}" for name, text in lines.items())

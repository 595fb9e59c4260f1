"""What the timings were made on."""

import os
import platform
from importlib.metadata import PackageNotFoundError, version

__all__ = ["description"]

PACKAGES = ("numpy", "scipy", "jax", "jaxlib", "torch", "cvxpy", "clarabel", "scs")


def description() -> str:
    """Return processor, cores, load and versions, in a few lines."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    versions = ", ".join(f"{name} {_version(name)}" for name in PACKAGES)
    threads = {
        name: os.environ[name] for name in ("OMP_NUM_THREADS", "XLA_FLAGS") if name in os.environ
    }
    system = f"{platform.system()} {platform.machine()}"
    lines = [
        f"{_processor()}, {cores} cores; {system}; load average {_load()}",
        f"Python {platform.python_version()}, {versions}",
    ]
    if threads:
        lines.append(", ".join(f"{name}={value}" for name, value in threads.items()))
    return "\n".join(lines)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(
                line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
            )
    except (OSError, StopIteration):
        return platform.processor() or "unknown processor"


def _load() -> str:
    return f"{os.getloadavg()[0]:.2g}" if hasattr(os, "getloadavg") else "unknown"


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"

"""One method on one problem, in its own process: prints what is known as JSON, as it gets known.

Run as `python -m benchmarks.worker METHOD PROBLEM OPTIMUM LIMIT`.
"""

import json
import resource
import sys

from benchmarks.problems import setting
from benchmarks.rivals import RIVALS

MEMORY_SHARE = 0.8


def main(method: str, name: str, optimum: float, limit: float) -> None:
    _limit_memory()
    rival = RIVALS[method]
    for measurements in rival.load().measure(setting(name), rival.variant, optimum, limit):
        print(json.dumps([measurement.to_json() for measurement in measurements]), flush=True)


def _limit_memory() -> None:
    """Let a method that wants more memory than there is fail alone, without the machine."""
    try:
        with open("/proc/meminfo") as lines:
            free = next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(MEMORY_SHARE * free * 1024), hard))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], float(sys.argv[3]), float(sys.argv[4]))

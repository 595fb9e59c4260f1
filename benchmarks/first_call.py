"""Import the library and solve one problem, once, in this process; print both times as JSON.

Run as `python -m benchmarks.first_call PROBLEM TOL`.
"""

import json
import sys
import time


def main(name: str, tol: float) -> None:
    began = time.perf_counter()
    import ufm

    imported = time.perf_counter()
    from benchmarks.problems import setting

    problem = setting(name).problem()
    called = time.perf_counter()
    solution = ufm.solve(problem, tol=tol)
    ended = time.perf_counter()
    gap = float("inf") if solution.certificate is None else solution.certificate.relative_gap
    print(json.dumps({"import": imported - began, "solve": ended - called, "gap": gap}), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], float(sys.argv[2]))

"""`ufm solve`: solve one problem, certify it, and compare it with theory."""

import argparse
import sys
import time
from typing import Any

from ufm import interruption
from ufm._support import table_lines
from ufm.cli.output import PATIENCE, check_output, print_json, write_file
from ufm.cli.problem_options import add_problem_options, one_of, read_problem

__all__ = ["add_parser"]

ROWS_SHOWN, OUTPUTS_SHOWN = 12, 12  # target rows and outputs that are listed one by one
PATIENCE_WITH_A_POINT = 10.0  # seconds to certify the point that an interrupted solve has reached


def add_parser(subparsers: Any) -> None:
    """Add the parser of `ufm solve`."""
    parser = subparsers.add_parser(
        "solve", help="solve one problem, certify it, and compare with theory"
    )
    add_problem_options(parser)
    parser.add_argument(
        "--resolution", default="auto", **one_of("auto", "classes", "groups", "samples")
    )
    parser.add_argument("--method", default="default", **one_of("default", "lbfgs", "newton", "gd"))
    parser.add_argument(
        "--learning-rate", type=float, default=None, help="of --method gd, 0.1 if not given"
    )
    parser.add_argument("--momentum", type=float, default=None, help="of --method gd")
    parser.add_argument("--tol", type=float, default=1e-9, help="relative gradient to stop at")
    parser.add_argument("--max-steps", type=int, default=None)
    parser.add_argument(
        "--restarts", type=int, default=None, help="initial points, solved in one batch"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument(
        "--save", metavar="FILE.npz", help="write weights, features, bias and logits"
    )
    parser.set_defaults(run=_solve)


def _solve(options: argparse.Namespace) -> int:
    import ufm

    problem, method = read_problem(options), _method(options)
    if options.save is not None:
        check_output("--save", options.save, ["npz"])
    with _Progress() as progress:
        try:
            solution = ufm.solve(
                problem,
                method=method,
                resolution=options.resolution,
                key=options.seed,
                tol=options.tol,
                max_steps=options.max_steps,
                restarts=options.restarts,
                progress=progress,
            )
        except ufm.SolveInterrupted as stop:
            solution = stop.solution
            progress.close()
            print(solution, file=sys.stderr if options.json else sys.stdout)
            if options.save:
                _save(options.save, solution)
                raise KeyboardInterrupt(
                    f"interrupted; {options.save} holds the point reached"
                ) from stop
            raise
    unsaved = None
    if options.save:
        try:
            _save(options.save, solution)
        except ValueError as error:  # print the answer first
            unsaved = error
    if not options.json:
        print(solution, flush=True)
    comparison, why = _compared(solution)
    verdict = ufm.verdict(solution) if problem.num_layers > 1 else None
    if options.json:
        print_json(_solution_dict(solution, comparison, verdict))
    else:
        if solution.resolution == "groups":
            print(f"\n{_group_table(solution)}")
        elif not problem.one_hot:
            print(f"\n{_target_table(solution)}")
        print(f"\n{why if comparison is None else comparison}")
        if verdict is not None:
            print(f"\n{verdict}")
    if unsaved is not None:
        raise unsaved
    certificate = solution.certificate
    if certificate is None or not certificate.tight:
        return 0 if solution.status.ok or (certificate is not None and certificate.holds) else 1
    return 0 if certificate.holds else 1


def _method(options: argparse.Namespace) -> Any:
    import ufm

    if options.method == "gd":
        return ufm.GradientDescent(options.learning_rate, momentum=options.momentum)
    for option, value in (
        ("--learning-rate", options.learning_rate),
        ("--momentum", options.momentum),
    ):
        if value is not None:
            raise ValueError(f"{option} goes with --method gd; add that, or leave {option} out")
    return {"default": None, "lbfgs": ufm.LBFGS(), "newton": ufm.NewtonCG()}[options.method]


class _Progress:
    """Shows the progress of a solve in a line of the terminal, once it has taken a second.

    It also says what an interruption leaves.
    """

    def __init__(self) -> None:
        self.began, self.shown = time.perf_counter(), False

    def __enter__(self) -> "_Progress":
        return self

    def __exit__(self, *raised: Any) -> None:
        self.close()

    def __call__(self, step: int, objective: float, residual: float) -> None:
        state = f"step {step}  objective {objective:.12g}  relative gradient {residual:.1e}"
        interruption.expect(PATIENCE_WITH_A_POINT, f"interrupted at {' '.join(state.split())}")
        elapsed = time.perf_counter() - self.began
        if elapsed > 1 and sys.stderr.isatty():
            self.shown = True
            print(f"\r{state}  {elapsed:.0f} s".ljust(79), end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        """Clear the line."""
        interruption.expect(PATIENCE)
        if self.shown:
            print("\r\x1b[2K", end="", file=sys.stderr, flush=True)
            self.shown = False


def _compared(solution: Any) -> tuple[Any, str]:
    """Return the comparison with theory, or None and why there is none.

    It is by groups if the solution is.
    """
    import ufm
    from ufm.problems import fits_dense

    problem = solution.problem
    by_groups = solution.resolution == "groups" and problem.feature_cone.rotates
    try:
        prediction = (
            ufm.theorems.predict_groups(problem, solution.groups)
            if by_groups
            else ufm.predict(problem)
        )
        return ufm.compare(solution, prediction), ""
    except ufm.NoPrediction:
        return None, "no theorem in the atlas covers this problem"
    except ValueError as error:  # too many classes for explicit matrices; still print the solution
        if fits_dense(problem.num_classes):
            raise
        return None, f"not compared with theory: {error}"


def _group_table(solution: Any) -> str:
    """Return a table with a row per group; cosines are those of two classes of the group."""
    found = solution.by_group()
    columns = {
        "classes": found["sizes"],
        "samples each": found["counts"],
        "|w|": found["weight_norms"],
        "|mean|": found["feature_norms"],
        "cos(w, w')": found["weight_cosines"].diagonal(),
        "cos(mean, mean')": found["feature_cosines"].diagonal(),
        "margin": found["margins"],
    }
    rows = [[f"{value:.10g}" for value in row] for row in zip(*columns.values(), strict=True)]
    return "\n".join(table_lines([list(columns), *rows], str.rjust))


def _target_table(solution: Any) -> str:
    """Return a table with a line per target row; what is typical of them where they are many."""
    import numpy as np

    targets, margins = solution.problem.targets, _margins(solution)
    rows = np.asarray(targets.rows)
    lengths = np.linalg.norm(np.asarray(solution.class_features), axis=1)
    columns = {"target": rows, "samples": np.asarray(targets.counts), "|h|": lengths}
    if margins is not None:
        columns["margin"] = margins
    if len(rows) <= ROWS_SHOWN and rows.shape[1] <= OUTPUTS_SHOWN:
        lines = zip(*columns.values(), strict=True)
        shown = [[_cell(cell) for cell in line] for line in lines]
        return "\n".join(table_lines([list(columns), *shown], str.rjust))
    del columns["target"]
    header = ["of all target rows", "least", "median", "largest"]
    values = [
        [name, *(f"{np.quantile(column, share):.10g}" for share in (0, 0.5, 1))]
        for name, column in columns.items()
    ]
    return "\n".join(table_lines([header, *values]))


def _cell(value: Any) -> str:
    return (
        f"{value:.10g}" if getattr(value, "ndim", 0) == 0 else " ".join(f"{y:.4g}" for y in value)
    )


def _margins(solution: Any) -> Any:
    """Return the margins of the rows' supports; None for targets without supports."""
    import numpy as np

    targets = solution.problem.targets
    if np.any(targets.rows < 0) or solution.logits.shape != np.shape(targets.rows):
        return None
    margins = np.asarray(solution.margins)
    return margins if np.any(np.isfinite(margins)) else None


def _target_dict(solution: Any) -> dict[str, Any] | None:
    """Return what is known of the target rows; None for classes."""
    import numpy as np

    targets = solution.problem.targets
    if targets is None:
        return None
    margins = _margins(solution)
    return {
        "rows": targets.num_rows,
        "outputs": targets.num_outputs,
        "samples": float(targets.num_samples),
        "rank": solution.rank,
        "least_margin": None if margins is None else float(np.min(margins)),
        "separated_rows": None if margins is None else int(np.sum(margins > 0)),
    }


def _solution_dict(solution: Any, comparison: Any, verdict: Any) -> dict[str, Any]:
    certificate = solution.certificate
    return {
        "objective": solution.objective,
        "status": str(solution.status),
        "message": solution.status.message,
        "relative_gradient": solution.relative_gradient,
        "steps": solution.steps,
        "evaluations": solution.evaluations,
        "seconds": solution.seconds,
        "certificate": None
        if certificate is None
        else {
            "lower_bound": certificate.lower_bound,
            "gap": certificate.gap,
            "relative_gap": certificate.relative_gap,
            "holds": certificate.holds,
            "method": certificate.method,
            "tight": certificate.tight,
        },
        "groups": solution.by_group() if solution.resolution == "groups" else None,
        "targets": _target_dict(solution),
        "comparison": comparison,
        "verdict": verdict,
    }


def _save(path: str, solution: Any) -> None:
    """Write what `ufm measure` reads (features, labels, weights, bias), and the unknowns.

    For targets, their rows and counts take the place of labels.
    """
    import numpy as np

    from ufm.problems import fits_dense

    K = solution.problem.num_classes
    if solution.resolution == "groups" and not fits_dense(K):
        write_file("--save", path, lambda file: np.savez(file, **solution.by_group()))
        print(
            f"ufm: note: {path} has numbers per group, not matrices: {K} classes are too many",
            file=sys.stderr,
        )
        return
    arrays = {f"weights_{layer + 1}": matrix for layer, matrix in enumerate(solution.weights)}
    if solution.bias is not None:
        arrays["bias"] = solution.bias
    targets = solution.problem.targets
    arrays |= (
        {"labels": np.arange(K)}
        if targets is None
        else {"target_rows": targets.rows, "target_counts": targets.counts}
    )
    arrays |= {
        "features": solution.class_features,
        "weights": solution.weights[-1],
        "unconstrained_features": solution.features,
        "logits": solution.logits,
    }
    write_file("--save", path, lambda file: np.savez(file, **arrays))

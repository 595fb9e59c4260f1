"""Certificates of global optimality: lower bounds that hold for any input."""

from ufm.certificates.atoms import Atom, relaxed_norm, violating_atom
from ufm.certificates.certificate import (
    BoundInputs,
    Certificate,
    bound_inputs,
    certificate_from,
    certificate_of,
    loss_doubt,
    lower_bound,
)
from ufm.certificates.chord import chord_bound
from ufm.certificates.deep import (
    OneLayerBound,
    has_bracket,
    has_singular_value_form,
    one_layer,
    singular_value_bound,
)
from ufm.certificates.dual import (
    DualBound,
    dual_bound,
    has_convex_form,
    has_one_minimum,
    has_tight_bound,
    longest_sum,
    needed_dimension,
)
from ufm.certificates.gaps import relative_scale, rounding_of
from ufm.certificates.grouped import (
    GroupEvidence,
    dual_blocks,
    group_evidence,
    group_objective,
    group_rounding,
    multiplier,
    nuclear_norm,
    tightened,
)
from ufm.certificates.orbits import OrbitEvidence, orbit_evidence, orbit_gauge

__all__ = [
    "Atom",
    "BoundInputs",
    "Certificate",
    "DualBound",
    "GroupEvidence",
    "OneLayerBound",
    "OrbitEvidence",
    "bound_inputs",
    "certificate_from",
    "certificate_of",
    "chord_bound",
    "dual_blocks",
    "dual_bound",
    "group_evidence",
    "group_objective",
    "group_rounding",
    "has_bracket",
    "has_convex_form",
    "has_one_minimum",
    "has_singular_value_form",
    "has_tight_bound",
    "longest_sum",
    "loss_doubt",
    "lower_bound",
    "multiplier",
    "needed_dimension",
    "nuclear_norm",
    "one_layer",
    "orbit_evidence",
    "orbit_gauge",
    "relative_scale",
    "relaxed_norm",
    "rounding_of",
    "singular_value_bound",
    "tightened",
    "violating_atom",
]

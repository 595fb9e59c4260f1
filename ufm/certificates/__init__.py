"""Certificates of global optimality: lower bounds that hold for any input."""

from ufm.certificates.atoms import Atom, relaxed_norm, violating_atom
from ufm.certificates.certificate import Certificate, Evidence, certificate_from, certify, evidence_of
from ufm.certificates.dual import DualBound, dual_bound, has_convex_form

__all__ = [
    "Atom",
    "Certificate",
    "DualBound",
    "Evidence",
    "certificate_from",
    "certify",
    "dual_bound",
    "evidence_of",
    "has_convex_form",
    "relaxed_norm",
    "violating_atom",
]

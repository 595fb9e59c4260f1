"""Certificates of global optimality: lower bounds that hold for any input."""

from ufm.certificates.certificate import Certificate, Evidence, certificate_from, certify, evidence_of
from ufm.certificates.dual import DualBound, dual_bound, has_convex_form

__all__ = ["Certificate", "DualBound", "Evidence", "certificate_from", "certify", "dual_bound", "evidence_of", "has_convex_form"]

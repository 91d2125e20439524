"""Checks a dataset for mistakes that spoil training, and names the remedy of the classic ones."""

from ovenet.audit.datasets import audit_dataset, check_datasets
from ovenet.audit.lists import (
    audit_list,
    findings_about_both,
    findings_between,
    missing_files,
    suggested_weights,
)
from ovenet.audit.repeats import copied_images, shared_images
from ovenet.audit.reports import Finding, ListReport
from ovenet.audit.tables import audit_as_dict, format_audit, format_finding, read_suggested_weights

__all__ = [
    "Finding",
    "ListReport",
    "audit_as_dict",
    "audit_dataset",
    "audit_list",
    "check_datasets",
    "copied_images",
    "findings_about_both",
    "findings_between",
    "format_audit",
    "format_finding",
    "missing_files",
    "read_suggested_weights",
    "shared_images",
    "suggested_weights",
]

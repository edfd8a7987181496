"""Whole-process measurements; figures are ratios within one run."""

"""The verdicts: one module a check, all of one shape."""

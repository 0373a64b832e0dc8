"""The results page: everything on it is computed from the rows of one evaluation, which stand beside it as JSON."""

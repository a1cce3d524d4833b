"""The families: one file each, a frozen dataclass whose `make(spec)` returns the functions."""

"""Linen bodies that families share, and the layers they are built from."""

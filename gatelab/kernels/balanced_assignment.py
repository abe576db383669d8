"""Exact balanced assignment of tokens to experts."""

"""Measurements of jobcore beside its peers and floors; see README.md in this folder."""

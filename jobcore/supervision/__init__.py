"""Supervision: the former name of `jobcore.supervisor`, for hosts that outlive an upgrade."""

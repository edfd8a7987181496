"""Connections over Unix sockets: counted, watched, and who is at their ends."""

"""Servers: which programs own the listeners of a host, and how many connections they can hold."""

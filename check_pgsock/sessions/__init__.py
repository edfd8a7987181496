"""Sessions: whose each connection is, what it does, how old it is; from sockets and titles."""

"""The life of a request, from its arrival to its end or its next try."""

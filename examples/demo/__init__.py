"""`make demo`: a real server on the CPU, dense and RaaS requests beside each other."""

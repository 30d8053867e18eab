"""What RaaS does not work with, each refused by name and with what to do.

`settings` are known before a process is started, `models` once one is loaded.
"""

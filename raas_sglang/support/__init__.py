"""What RaaS does not work with, each refused by name and with what to do.

`settings` and `architectures` are known before a process is started, `models` once one is loaded,
`inputs` when a request comes.
"""

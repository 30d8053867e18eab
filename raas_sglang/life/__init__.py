"""The life of a request, in the product's own words; hooks on SGLang only call what is here.

    arrive ──> admit ──> prefilled ──> step, step, ... ──> finish
       │         ^           │ resume     │                   what others may share of it
       │ refused └───────────┴── retract ─┘

`options` reads what it asks for, `room` refuses what could never be served, `reservation` and
`admission` set its slots aside, `request` is the record of how far it has come, `step` takes a
batch from its prefill on and from one token to the next, and `restore` lays a budget out again
after a retraction. The device has copies of what the record says, which kernels read.
"""

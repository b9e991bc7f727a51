"""Where a batch's time goes: what each process, thread and phase took, and what batches waited for.

`meters` reads clocks around functions, `processes` what the kernel counts, `phases` says which
functions are which phase, `account` puts these together, `queues` reads the record, and `show` and
`speedscope` are for people. docs/profile.md says what the figures mean.
"""

"""What a budget costs: tasks x methods x budgets, asked of a server, every answer graded and kept.

``python -m accuracy.run`` from ``benchmarks/`` collects samples, ``accuracy.summary`` turns them
into rows with intervals and paired tests, ``accuracy.tables`` and ``accuracy.plot`` show the rows.
``accuracy.offline`` adds what the engine does not do: Quest, which selects and never gives up.
``accuracy.milestones`` shows the pages that are kept, ``accuracy.lost`` what the others would have
been attended.
"""

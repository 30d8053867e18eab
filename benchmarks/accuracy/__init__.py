"""What a budget costs: tasks x methods x budgets, asked of a server, every answer graded and kept.

``python -m accuracy.run`` from ``benchmarks/`` collects samples, ``accuracy.summary`` turns them
into rows with intervals and paired tests, ``accuracy.tables`` and ``accuracy.plot`` show the rows.
``accuracy.study.run`` asks no server and knows rules that the engine does not have.
``accuracy.milestones`` shows the tokens that are kept.
"""

"""What a budget costs: tasks x methods x budgets, asked of a server, every answer graded and kept.

`run` collects samples, `summary` turns them into rows with intervals, `benchmarks.report.accuracy`
shows the rows with paired tests. `study.run` asks no server and knows rules that the engine does
not have.
"""

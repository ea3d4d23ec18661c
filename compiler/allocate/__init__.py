"""Which bits go where: what an error of each matrix costs the task, and types under a size.

`probes.py` makes scalars of the model's answers that measure the task's divergence, `knapsack.py`
chooses under a budget. The passes are `passes/sensitivity.py` and `passes/allocate.py`.
"""

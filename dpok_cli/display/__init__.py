"""Output on the terminal.

In: records and results.
Out: lines, live views and tables on a terminal.

Nothing here imports torch.
"""

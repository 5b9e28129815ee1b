"""Reports.

In: the results of an evaluation.
Out: plots, report.html and the blind page for raters.
"""

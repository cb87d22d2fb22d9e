"""The report: sections measure, `report.json` holds all their results, and pages show them.

A section is a function of `Inputs` in a module of `kvtq_hw.report.sections`. The function returns
plain values; each table and plot has a tag (measured, derived or projected) and the command behind
it. Pages are made from `report.json` alone, and can be made from it again.
"""

"""The report: sections that measure, `report.json` that holds all they found, and pages made of it.

A section is a function of `Inputs` in a module of `kvtq_hw.report.sections`. It returns plain
values, each table and plot with a tag (measured, derived or projected) and the command behind it.
Pages are made from those values alone, so whoever has `report.json` can make them again.
"""

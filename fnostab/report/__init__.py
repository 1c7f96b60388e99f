"""Figures, tables, cards and HTML reports of runs and studies."""

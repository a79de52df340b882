"""FINDINGS.md: what a study found, in words and numbers that come from its tables; nothing in it is typed by hand.

evidence.py reads the tables of a study and of its replicates (the same study under other seeds) and pools them;
claims.py says of each claim whether it held; page.py writes the Markdown.
"""

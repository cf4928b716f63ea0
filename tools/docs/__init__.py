"""Generators of graphs, locales, pictures and tables."""

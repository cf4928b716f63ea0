"""Weights on disk and on the Hub: opened, recognised, downloaded."""

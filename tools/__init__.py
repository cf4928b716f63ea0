"""What users of the pack do not need: the launcher of run.py, generators of docs, the demo models' recipe."""

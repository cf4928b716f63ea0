"""Sets up the environment of the two commands in run.py and drives a headless ComfyUI."""

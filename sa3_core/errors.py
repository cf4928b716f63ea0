"""The error class of the project."""


class SA3Error(Exception):
    """An error that the user can fix. The message names the value found, the value expected and what to do."""

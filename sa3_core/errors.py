"""The one error class of the project."""


class SA3Error(Exception):
    """What the user can act on: a sentence with the value found, the value expected and the way out."""

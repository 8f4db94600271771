"""The one exception whose message is written for the user."""


class UserError(Exception):
    """One sentence for the user that names the thing and the remedy; train.py prints it and exits non-zero."""

"""The one exception whose message is meant for the person at the keyboard."""


class UserError(Exception):
    """Something the user can mend: the message is one sentence that names the thing and the remedy."""

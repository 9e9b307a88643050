"""The one exception whose text is meant for the person using the tool."""


class UserError(ValueError):
    """A problem that the person can solve; the text is one sentence that says what to do."""

"""The one error that is a user's: told in a line, without a traceback."""


class Mistake(ValueError):
    """Its text says what is wrong, where, and what to do; `ground.entry.execute` prints it, with exit code 2. Any other
    ValueError is a defect of this program, and keeps its traceback."""

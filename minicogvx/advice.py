"""What a user should know while the work goes on: a warning that is one sentence, whatever line of code it is about."""


class Advice(UserWarning):
    """A warning for whoever uses the package; the command line and notebooks print its sentence alone."""

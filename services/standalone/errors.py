"""What goes wrong in the embedded stack, each as a sentence that says what to do."""


class StandaloneError(Exception):
    """The stack cannot start or go on; the text is meant for the person at the terminal."""


class DataDirInUseError(StandaloneError):
    """Another process works on the same data directory."""


class PortInUseError(StandaloneError):
    """A port that was asked for by number belongs to somebody else."""

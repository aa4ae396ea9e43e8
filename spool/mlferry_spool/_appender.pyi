class Appender:
    """The counters of an open segment, and what writes frames to it."""

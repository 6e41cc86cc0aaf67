"""The parts of the listener: it receives messages, observes their runs and decides about them.

``decision`` decides; ``intake`` creates runs; ``recovery``, ``heartbeats`` and ``processes``
observe and end them; ``one_listener`` keeps one listener; ``setup`` checks its needs.
"""

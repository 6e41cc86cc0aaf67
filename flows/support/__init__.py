"""Shared by the flows: the listener's parts, the run page, and the checks of an installation.

``decision`` decides about runs; ``recovery``, ``heartbeats`` and ``processes`` observe and end
them; ``artifacts`` and ``progress`` show an export; ``outage`` waits for services that are away.
"""

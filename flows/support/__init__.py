"""Shared by the flows: the current attempt, outages, tags of runs, log fields, task runners."""

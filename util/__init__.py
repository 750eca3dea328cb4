"""Helpers that know nothing of the project: errors, files, caches of rows, devices, processes, signals, settings."""

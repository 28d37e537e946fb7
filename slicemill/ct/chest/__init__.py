"""Synthetic chest CTs with lung nodules."""

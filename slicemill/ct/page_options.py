"""Options of pages with slices, without the modules that make them."""

VIEWER_MB = 8
"""MiB of slices in a page: a page of this size can still be sent by mail."""
MOST_VIEWER_MB = 200
"""Browsers open larger pages slowly, or not at all."""

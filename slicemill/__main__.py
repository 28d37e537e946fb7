"""``python -m slicemill`` runs the command ``slicemill``."""

from slicemill.cli import main

main()

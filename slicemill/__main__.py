"""``python -m slicemill`` is the command ``slicemill``."""

from slicemill.cli import main

main()

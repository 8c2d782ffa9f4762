"""The ``output-keeper`` command line."""

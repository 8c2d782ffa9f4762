"""``python -m output_keeper`` is the ``output-keeper`` command."""

import sys

from output_keeper.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

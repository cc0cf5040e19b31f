"""`python -m cifarbench` and `torchrun … -m cifarbench`."""

import sys

from cifarbench.cli import main

if __name__ == "__main__":
    sys.exit(main())

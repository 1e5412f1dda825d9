"""``python -m torchpipe.utils.encrypt IN OUT``: the older name of ``python -m torchpipe encrypt IN OUT``."""

import sys

from ..encryption.command import main

if __name__ == "__main__":
    sys.exit(main())

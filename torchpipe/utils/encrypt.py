"""``python -m torchpipe.utils.encrypt IN OUT``: the older name of ``python -m torchpipe encrypt IN OUT``."""

import sys

from ..tools.encrypt import main

if __name__ == "__main__":
    sys.exit(main())

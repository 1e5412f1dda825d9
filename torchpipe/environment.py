"""What libraries read from the environment when they start, set as serving needs it unless the user has.

CUDA gives a process 8 queues of work for each GPU, and streams that share one wait for each other. A decoder
of images has 14 streams alone, and every instance one: with 8 queues it waits for networks that it has
nothing to do with.
"""

import os

os.environ.setdefault("CUDA_DEVICE_MAX_CONNECTIONS", "32")  # the most there are

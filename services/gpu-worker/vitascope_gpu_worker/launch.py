"""Start ranks as torchrun does (`python -m vitascope_gpu_worker.launch …`, its arguments), and end as they do.

Told to stop, torchrun tells its ranks, waits for them, and then leaves with a traceback and status 1, as if something
had gone wrong. Here that is status 0; everything else is as torchrun has it.
"""

import sys

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.run import main

if __name__ == "__main__":
    try:
        main()
    except SignalException:
        sys.exit(0)

# What each does is said in reductions.py and _kernels.cpp. The first nine arguments are a tensor's
# address, kind, samples, units, positions and their strides, and the number of threads.

def count(
    data: int,
    kind: int,
    samples: int,
    units: int,
    positions: int,
    by_sample: int,
    by_unit: int,
    by_position: int,
    threads: int,
    signed: bool,
    sums: int,
    maximum: int,
    minimum: int,
    /,
) -> None: ...
def watch(
    data: int,
    kind: int,
    samples: int,
    units: int,
    positions: int,
    by_sample: int,
    by_unit: int,
    by_position: int,
    threads: int,
    signed: bool,
    states: int,
    /,
) -> int: ...
def raise_maximum(
    data: int,
    kind: int,
    samples: int,
    units: int,
    positions: int,
    by_sample: int,
    by_unit: int,
    by_position: int,
    threads: int,
    fired: int,
    running: int,
    /,
) -> None: ...

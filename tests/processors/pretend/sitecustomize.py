"""Python that says of this processor that it has no AVX-512, in every process that finds this folder:

    PYTHONPATH=tests/processors/pretend python -m tintype.models.postcard.evaluate bundle --exactness balanced

Graphs are then those of a processor with AVX2 alone, weights included; their integers are the same sums here as there.
Nothing is emulated: for instructions themselves there is emulated.py.
"""

import numpy._core._multiarray_umath as umath

for name in list(umath.__cpu_features__):
    if name.startswith("AVX512") or name in ("X86_V4", "AMX"):
        umath.__cpu_features__[name] = False

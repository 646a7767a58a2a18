"""The compiled part, reludiag._kernels; all else is in pyproject.toml.

It is optional: without a compiler PyTorch's operators do the same, at several times the cost.
"""

import sysconfig
from pathlib import Path
from zlib import crc32

from setuptools import Extension, setup

NATIVE = Path("reludiag/native")
headers = sorted(path.as_posix() for path in NATIVE.glob("*.hpp"))
# As reludiag/measure/extension.py computes it: by this it is known what was compiled.
checksum = crc32(b"".join(path.read_bytes() for path in sorted(NATIVE.glob("*.?pp"))))
# A free-threaded Python has no stable interface to be compiled for.
has_stable_abi = not sysconfig.get_config_var("Py_GIL_DISABLED")

setup(
    ext_modules=[
        Extension(
            "reludiag._kernels",
            ["reludiag/native/kernels.cpp"],
            depends=headers,
            define_macros=[("SOURCES", hex(checksum))],
            extra_compile_args=["-std=c++17", "-O2", "-g0", "-Wno-psabi"],
            extra_link_args=["-s"],
            py_limited_api=has_stable_abi,
            optional=True,
        )
    ],
    options={
        # What lies in build/ may be of other sources, and modification times do not tell.
        "build_ext": {"force": True},
        **({"bdist_wheel": {"py_limited_api": "cp311"}} if has_stable_abi else {}),
    },
)

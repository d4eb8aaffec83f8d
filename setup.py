"""Builds the Cython parts; everything else is in pyproject.toml."""

import os
import pathlib

from Cython.Build import cythonize
from setuptools import Extension, setup

SANITIZE = os.environ.get("SWAPTIDE_SANITIZE", "")
# Threads dawdle at the dangerous places: see point() in cache/atomics.h, and `make race`.
POINTS: list[tuple[str, str | None]] = [("SWAPTIDE_POINTS", None)]
MACROS = POINTS if os.environ.get("SWAPTIDE_POINTS") else []
FLAGS = ["-O2", "-g", "-Wall", "-Wno-unused-function", *([f"-fsanitize={SANITIZE}"] if SANITIZE else [])]
_CODECS = ["crypto", "lz4", "zstd"]
LIBRARIES = {
    **dict.fromkeys(("ahead", "cleaner", "fetch", "image", "packer", "parcels", "spiller"), _CODECS),
    **dict.fromkeys(("link", "wire"), ["nbd"]),
}
LINK = [f"-fsanitize={SANITIZE}"] if SANITIZE else []


def extensions() -> list[Extension]:
    """One extension for each .pyx file of the two rooms that have compiled code."""
    root = pathlib.Path(__file__).parent
    sources = sorted((root / "src/swaptide").glob("cache/*.pyx")) + sorted(
        (root / "src/swaptide").glob("nbdkit_plugin/*.pyx")
    )
    return [
        Extension(
            "swaptide." + ".".join(path.relative_to(root / "src/swaptide").with_suffix("").parts),
            [str(path.relative_to(root))],
            extra_compile_args=FLAGS,
            define_macros=MACROS,
            extra_link_args=LINK,
            include_dirs=["cache", "nbdkit_plugin"],
            libraries=LIBRARIES.get(path.stem, []),
            depends=[
                str(p.relative_to(root))
                for room in ("cache", "nbdkit_plugin")
                for p in (root / room).glob("*.h")
            ],
        )
        for path in sources
    ]


setup(
    ext_modules=cythonize(
        extensions(),
        build_dir="build/cython",
        include_path=["src"],
        compiler_directives={
            "language_level": 3,
            "boundscheck": False,
            "wraparound": False,
            "cdivision": True,
            "initializedcheck": False,
        },
    )
)

"""List the packages to copy to a machine without network: what the check needs besides the usual libraries."""

import re
import zlib
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

# What images for training usually contain.
ASSUMED = ("torch", "transformers", "peft", "pandas", "pyarrow")
ROOTS = ("trl", "datasets", "bitsandbytes", "ruamel.yaml", "gguf")
# Whole, with what it needs: whether transformers brings it depends on the release of typer beside it.
WHOLE = ("pydantic",)
LIMIT_MB = 64
CARRY = """copy them as wheels (write the target's Python and glibc for 3.12 and 2_28):
  python -m pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \\
    --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d wheels \\
    {pins}
there, without a network:
  python -m pip install --no-index --no-deps --target site wheels/*.whl
  PYTHONPATH=site python -m benchmarks gpu --minutes 8 --json gpu.json"""


def table() -> str:
    """Return the packages with versions and sizes, their sum, and the commands that copy them."""
    names = sorted(closure(ROOTS) - closure(ASSUMED) | closure(WHOLE))
    sizes = {name: compressed_bytes(found) for name in names if (found := installed(name))}
    lines = [f"assumed to be installed: {', '.join(ASSUMED)} and what they need; the rest, as wheels (estimated):"]
    for name in names:
        if name in sizes:
            lines.append(f"  {name:<20} {distribution(name).version:<12} {sizes[name] / 1e6:>6.1f} MB")
        else:
            lines.append(f"  {name:<20} {'-':<12} not installed here, so that its size is not known")
    total = sum(sizes.values()) / 1e6
    verdict = "below" if total < LIMIT_MB else "above"
    lines.append(f"  {'together':<33} {total:>6.1f} MB, {verdict} {LIMIT_MB} MB")
    pins = " ".join(f"{name}=={distribution(name).version}" if name in sizes else name for name in names)
    return "\n".join([*lines, CARRY.format(pins=pins)])


def closure(roots: tuple[str, ...]) -> set[str]:
    """Return the normalized names of packages and of all that they require, as installed here, extras left out."""
    found: set[str] = set()
    open_names = [normalized(name) for name in roots]
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        found.add(name)
        package = installed(name)
        open_names += [normalized(text) for text in (package.requires or [])] if package else []
        found.discard("")
    return found


def normalized(requirement: str) -> str:
    """Return the package that a requirement names, "" where only an extra or another system asks for it.

    >>> normalized("ruamel.yaml>=0.18"), normalized("Foo_bar ; extra == 'x'")
    ('ruamel-yaml', '')
    """
    name, _, marker = requirement.partition(";")
    if "extra" in marker or "win32" in marker or "Windows" in marker or "darwin" in marker:
        return ""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name.strip())[0]).lower()


def installed(name: str) -> Distribution | None:
    """Return a package as it is installed here, None where it is not."""
    try:
        return distribution(name)
    except (PackageNotFoundError, ValueError):
        return None


def compressed_bytes(package: Distribution) -> int:
    """Return the size of a package's files, each compressed as in a wheel; bytecode is made where it is installed."""
    files = [file for file in package.files or () if file.suffix != ".pyc" and ".." not in file.parts]
    paths = [Path(str(file.locate())) for file in files]
    return sum(len(zlib.compress(path.read_bytes())) for path in paths if path.is_file())

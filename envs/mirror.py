"""Write lora-atlas.yaml, the conda mirror of requirements.lock: the same pins, for `snakemake --sdm conda`.

Everything but Python itself comes from PyPI there too: torch, torchvision and diffusers must be those of the lock.
"""

import re
from pathlib import Path

HERE = Path(__file__).parent
HEADER = """\
# The pins of requirements.lock for `snakemake --sdm conda`. Written by envs/mirror.py; do not edit.
name: lora-atlas
channels:
  - conda-forge
  - nodefaults
dependencies:
  - python >=3.11,<3.14
  - pip
  - pip:
"""


def pins(lock: str) -> list[str]:
    """The requirements of a lock file, without hashes: ``name==version`` with its environment marker."""
    lines = re.findall(r"^([\w.\-\[\]]+==[^\\\n]+?)\s*\\?$", lock, re.MULTILINE)
    return [line.strip() for line in lines]


def mirror(lock: str) -> str:
    """The text of lora-atlas.yaml for the text of requirements.lock."""
    return HEADER + "".join(f'      - "{pin}"\n' for pin in pins(lock))


if __name__ == "__main__":
    (HERE / "lora-atlas.yaml").write_text(mirror((HERE / "requirements.lock").read_text()))

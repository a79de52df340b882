"""The code of README.md does what it says."""

import re
from pathlib import Path

import numpy as np
from lora_files import lora, sd1

README = Path(__file__).parents[2] / "README.md"


def test_the_code_of_the_notebook_runs(tmp_path):
    blocks = re.findall(r"^```python\n(.*?)^```", README.read_text(encoding="utf-8"), re.M | re.S)
    (code,) = (block for block in blocks if "lora_atlas" in block and "module atlas" not in block)
    first, second = code.split("\n\nfrom lora_atlas.collection", 1)
    paths = [lora(tmp_path / f"{seed}.safetensors", sd1(), seed) for seed in range(5)]
    there: dict = {"paths": paths}
    exec(first, there)
    assert there["K"].shape == (5, 5) and np.allclose(np.diag(there["K"]), 1)
    distances = np.square(there["vectors"][:, None] - there["vectors"][None]).sum(-1)
    np.testing.assert_allclose(distances, 2 - 2 * there["K"], atol=1e-6)
    # What it imports is there; a collection needs a study.
    imports = [line for line in f"from lora_atlas.collection{second}".splitlines() if line.startswith("from ")]
    exec("\n".join(imports), there)
    assert callable(there["query"]) and callable(there["collections"])

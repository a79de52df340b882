"""What must not decide over a test: this machine's speed, a new draw of examples, and what a person has set up."""

import os

from hypothesis import settings

# A slow machine is no fault, and what failed once fails again: examples are drawn the same each time. `make fuzz` draws
# anew.
settings.register_profile("lora-atlas", deadline=None, derandomize=True)
settings.load_profile("lora-atlas")

# Servers of tests are on this machine, whatever proxy leads out of it.
for _name in ("NO_PROXY", "no_proxy"):
    os.environ[_name] = ",".join(filter(None, [os.environ.get(_name), "127.0.0.1", "localhost"]))
os.environ.pop("SNAKEMAKE_PROFILE", None)

#!/usr/bin/env bash
# diffusers: a third of what a short job pays for importing it is Python's garbage collector, which finds nothing
#
# Versions: diffusers 0.42.1, transformers 5.23.0, peft 0.21.2, torch 2.13.0, CPython 3.11 to 3.13.
#
# What it does. `from diffusers import StableDiffusionPipeline` brings thousands of modules and hundreds of thousands of objects that the
# collector tracks, all of which stay. While they are made its full collections go through everything that is there, again and
# again; and when the process ends, the interpreter collects once more before it gives up its modules, which takes as long as all
# of those together. With the collector asleep during the import the end alone still costs as much; with what came set aside as
# well (gc.freeze()) neither does, and the process that only imports takes two thirds of the processor time.
#
# What most would expect. That an import is reading files and running them once, and that ending a process costs nothing. Pipelines
# of many short jobs (one process a LoRA, a prompt, a picture) pay more than a second of processor for each.
#
# Seen 2026-11-29, seconds of processor of a process that imports and ends, of two cores that others used:
#   as it is 4.4, collector asleep 4.2, asleep and set aside 3.0: 0.68 of the first
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check \
  diffusers==0.42.1 transformers==5.23.0 peft==0.21.2 torch==2.13.0 accelerate==1.15.0
cat > "$folder/start.py" <<'PY'
import gc
import sys

if sys.argv[1] != "as it is":
    gc.disable()
from diffusers import StableDiffusionPipeline  # noqa: F401

if sys.argv[1] == "asleep and set aside":
    gc.freeze()
gc.enable()
PY
cat > "$folder/measure.py" <<'PY'
import resource
import statistics
import subprocess
import sys

WAYS = ("as it is", "asleep", "asleep and set aside")


def seconds(way):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "start.py", way], check=True, stderr=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


seconds(WAYS[0])  # compiled, and in the page cache
found = {way: [] for way in WAYS}
for _ in range(5):  # in turns: the machine may be shared
    for way in WAYS:
        found[way].append(seconds(way))
plain, asleep, aside = (statistics.median(found[way]) for way in WAYS)
print(f"as it is {plain:.1f}, collector asleep {asleep:.1f}, asleep and set aside {aside:.1f}: {aside / plain:.2f} of the first")
assert aside < 0.8 * plain
assert aside < 0.9 * asleep
PY
cd "$folder"
env/bin/python measure.py
echo "as seen"

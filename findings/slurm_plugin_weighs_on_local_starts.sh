#!/usr/bin/env bash
# Snakemake's SLURM plugin: to have it installed makes every start of Snakemake import pandas, on no cluster too
#
# Versions: Snakemake 9.27.1, snakemake-executor-plugin-slurm 2.8.0, pandas as it asks for it, Python 3.11 to 3.13.
#
# What it does. Snakemake imports every executor plugin that it finds before it reads its command line, to know their options.
# The one for SLURM imports pandas at its top, for a report on how well jobs used what they asked for, which is off unless a flag
# asks for it. So `snakemake --version`, every dry run and every run on a workstation import pandas, a third of such a start.
# Without the plugin none of them does.
#
# What most would expect. That an executor costs what it costs where it is chosen (--executor slurm), or at least that its
# report's library is imported by the report. A workflow that lists both packages in one environment, so that the same
# environment serves a laptop and a cluster, pays for it at every start of either.
#
# Seen 2026-11-29:
#   snakemake --version imports pandas: without the plugin no, with it yes
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
pip() { "$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check "$@"; }
# Whether a start without any workflow imports pandas: Python's own list of imports names what it brings.
imports() {
  "$folder/env/bin/python" -X importtime "$folder/env/bin/snakemake" --version > "$folder/log" 2>&1
  if grep -q '| *pandas$' "$folder/log"; then echo yes; else echo no; fi
}
cd "$folder"
# pandas is there both times: what differs is who imports it.
pip snakemake==9.27.1 pandas
without=$(imports)
pip snakemake-executor-plugin-slurm==2.8.0
with=$(imports)
echo "snakemake --version imports pandas: without the plugin $without, with it $with"
test "$without" = no
test "$with" = yes
echo "as seen"

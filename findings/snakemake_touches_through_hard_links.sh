#!/usr/bin/env bash
# Snakemake: a second run has work to do where jobs place one cached file by hard links
#
# Versions: Snakemake 9.27.1, Python 3.11 to 3.13.
#
# What it does. When a job has ended, the driver touches each of its outputs, so that they are newer than their inputs whatever
# clock wrote them. A hard link has no date of its own. So a job that links a file of a cache to its place, minutes after
# another job has done the same, makes that other job's output new as well, after its consumers have run. The next run says
# "Updated input files" and runs those consumers, and all that follows, though no byte has changed and no job failed. Inputs of
# up to a megabyte are held to a check sum and stay quiet, so a trial with small files shows nothing.
#
# What most would expect. That the outputs of one rule's jobs do not age each other, and that "nothing to be done" follows a run
# that ended well. Linking instead of copying is what caches of environments and models do, and what a job does that restores
# gigabytes; a symbolic link is safe (its own date is set), and so is a copy or a reflink.
#
# Seen 2026-11-29:
#   second run after hard links: use_first runs again; after copies: nothing
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check snakemake==9.27.1
cat > "$folder/Snakefile" <<'PY'
rule all:
    input: "first.used", "second.placed"

rule first:
    output: "first.placed"
    priority: 3
    shell: "{config[place]} cache/file {output}"

rule use_first:
    input: "first.placed"
    output: "first.used"
    priority: 2
    shell: "cp {input} {output}; sleep 1.2"

rule second:
    output: "second.placed"
    priority: 1
    shell: "{config[place]} cache/file {output}"
PY
cd "$folder"
mkdir cache
head -c 2000000 /dev/zero > cache/file
again() {
  rm -rf first.* second.* .snakemake
  env/bin/snakemake --cores 1 --config "place=$1" > log 2>&1
  env/bin/snakemake --cores 1 --config "place=$1" -n > second.log 2>&1
  if grep -q "Nothing to be done" second.log; then echo nothing; else
    grep -q "Updated input files: first.placed" second.log
    sed -n 's/^\(local\)\?rule \(.*\):$/\2/p' second.log | head -n 1; fi
}
linked=$(again ln)
copied=$(again cp)
echo "second run after hard links: $linked runs again; after copies: $copied"
test "$linked" = use_first
test "$copied" = nothing
echo "as seen"

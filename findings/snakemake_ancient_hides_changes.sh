#!/usr/bin/env bash
# Snakemake: what follows an `ancient` input is not looked at when that input's own job runs
#
# Versions: Snakemake 9.27.1, Python 3.11 to 3.13.
#
# What it does. An input that is `ancient` is no reason to run a job again, also where the job that makes it runs in the same
# invocation. But before Snakemake goes from jobs that run to those that follow, it leaves out every job below them, through
# `ancient` inputs too, from the search for reasons of their own: "they will be determined because they depend on them". Then
# they are not, since the way there stops at the `ancient` input. A changed parameter, a changed set of inputs, code or a newer
# file of such a job is overlooked: the run ends in success with an outdated result. The next run, in which the first job has
# nothing to do, finds the change.
#
# What most would expect. That `ancient` takes away one reason, the time of that file, and no other: the documentation says that
# the file's timestamp is ignored.
#
# Seen 2026-11-28 (x has the parameter p; it was made with p=1; then p=2 and another parameter for the job before):
#   p alone changed:                  x is made again
#   p and the job before it changed:  x is not made again
#   the same command once more:       x is made again
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check snakemake==9.27.1
cat > "$folder/Snakefile" <<'PY'
rule all:
    input: "x"

rule before:
    output: "b"
    params: q=config["before"]
    shell: "echo {params.q} > {output}"

rule x:
    input: ancient("b")
    output: "x"
    params: p=config["own"]
    shell: "echo {params.p} > {output}"
PY
cd "$folder"
made() { env/bin/snakemake --cores 1 --quiet all --config "own=$1" "before=$2" >/dev/null 2>&1; cat x; }
test "$(made 1 1)" = 1
test "$(made 3 1)" = 3
echo "p alone changed:                  x is made again"
test "$(made 2 2)" = 3
echo "p and the job before it changed:  x is not made again"
test "$(made 2 2)" = 2
echo "the same command once more:       x is made again"
echo "as seen"

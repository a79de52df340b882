#!/usr/bin/env bash
# Snakemake: an error that an input function raises is passed over where the file is there, and the change with it
#
# Versions: snakemake 9.27.1, Python 3.11.
#
# What it does. An input function may raise WorkflowError, and on a first run that ends the run with its words. Once the file is
# there and is not asked for by name or by the rule next to the target, the same error is caught, noted at the level of debugging,
# and the file counts as a source that nobody makes: its rule is left out of the graph, with its changed params, code and inputs.
# The run says "Nothing to be done" and ends with 0, though the same settings without the error make everything anew. Asked for
# from nearby, the same error is raised.
#
# What most would expect. That a check within an input function (a licence, a token, a server that wants to know who asks) stops the
# run whenever it fails. A configuration that was changed together with a check that fails gives yesterday's results as today's.
#
# Seen 2026-11-30:
#   refused, nothing there yet:                     exit 1, the licence server says no, report: none
#   permitted:                                      exit 0, 4 of 4 steps (100%) done, report: 1
#   number changed, refused:                        exit 0, Nothing to be done, report: 1
#   number changed, refused, data.txt asked for:    exit 1, the licence server says no, report: 1
#   number changed, refused, table.txt asked for:   exit 1, the licence server says no, report: 1
#   number changed, permitted:                      exit 0, 4 of 4 steps (100%) done, report: 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check snakemake==9.27.1
mkdir "$folder/work"
cd "$folder/work"
cat > Snakefile <<'SMK'
from snakemake.exceptions import WorkflowError

number = config.get("number", 1)


def permitted(wildcards):
    if config.get("refuse"):
        raise WorkflowError("the licence server says no")
    return []


rule all:
    input: "report.txt"

rule report:
    input: "table.txt"
    output: "report.txt"
    shell: "cp {input} {output}"

rule table:
    input: "data.txt"
    output: "table.txt"
    shell: "cp {input} {output}"

rule data:
    input: permitted
    output: "data.txt"
    params: number=number
    shell: "echo {params.number} > {output}"
SMK
run() {
  local code=0
  "$folder/env/bin/snakemake" --quiet host --cores 1 "$@" > out.txt 2>&1 || code=$?
  local said
  said=$(grep -m1 -o "Nothing to be done\|the licence server says no\|[0-9]* of [0-9]* steps (100%) done" out.txt || true)
  echo "exit $code, $said, report: $(cat report.txt 2> /dev/null || echo none)"
}
{
  echo "refused, nothing there yet:                     $(run --config refuse=1)"
  echo "permitted:                                      $(run)"
  echo "number changed, refused:                        $(run --config number=2 refuse=1)"
  echo "number changed, refused, data.txt asked for:    $(run data.txt --config number=2 refuse=1)"
  echo "number changed, refused, table.txt asked for:   $(run table.txt --config number=2 refuse=1)"
  echo "number changed, permitted:                      $(run --config number=2)"
} | tee seen.txt
grep -q "^number changed, refused: .*exit 0, Nothing to be done, report: 1" seen.txt
grep -q "^number changed, permitted: .*exit 0, .*report: 2" seen.txt
test "$(grep -c "exit 1, the licence server says no" seen.txt)" = 3
echo "as seen"

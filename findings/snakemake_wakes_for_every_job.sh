#!/usr/bin/env bash
# Snakemake: while jobs wait for a core, the scheduler looks again each second once for every job that has ended
#
# Versions: Snakemake 9.27.1, Python 3.11 to 3.13.
#
# What it does. Starts of jobs are limited, to 100 a second unless --max-jobs-per-timespan says otherwise. Whenever the
# scheduler has looked for jobs to start and some are left, it sets a timer of that timespan after which it will look again.
# A job that ends makes it look as well, and that look sets another timer; each look that a timer causes sets the next. So
# there are as many chains of timers as there were events, and none ends before the queue is empty. With all cores taken and
# anything waiting, the driver looks N times a second after N jobs, collecting the sizes of all waiting jobs' inputs each
# time, until that fills its core.
#
# What most would expect. That a limit of starts costs nothing where it is never reached, and that a driver whose jobs are
# all running sleeps. The option's help speaks of submissions alone.
#
# Seen 2026-11-29 (60 jobs that do nothing, then one that sleeps 20 s on the only core while 3 wait; how often the scheduler
# looked during the sleep): 849 and 1,155 times at the default, 244 at 100/5s (the same rate, less often), never with the limit
# taken away at the start; processor of the driver 7.9, 6.2 and 5.5 s.
#   looks while one job sleeps: 1155 with the limit 100/1s, 0 without one
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/python" -m pip install --quiet --disable-pip-version-check snakemake==9.27.1
cat > "$folder/Snakefile" <<'PY'
onstart:
    if config["limit"] == "none":
        workflow.scheduler.job_rate_limiter = None

rule all:
    input: expand("quick/{n}", n=range(60)), "slow", expand("late/{n}", n=range(3))

rule quick:
    output: touch("quick/{n}")
    priority: 2
    shell: "true"

rule slow:
    output: touch("slow")
    priority: 1
    shell: "sleep 20"

rule late:
    output: touch("late/{n}")
    shell: "true"
PY
cd "$folder"
looks() {
  rm -rf quick slow late .snakemake
  env/bin/snakemake --cores 1 --verbose --config "limit=$1" > log 2>&1
  awk '/^rule slow/ {on = 1} /^Touching output file slow/ {on = 0} on && /^Ready jobs:/ {n++} END {print n + 0}' log
}
limited=$(looks default)
free=$(looks none)
echo "looks while one job sleeps: $limited with the limit 100/1s, $free without one"
test "$limited" -gt 100
test "$free" = 0
echo "as seen"

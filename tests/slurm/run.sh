#!/usr/bin/env bash
# A tiny study on a real SLURM of two nodes on one machine, which this script sets up, uses and takes down again.
#
# Needs root and Debian's packages:  apt-get install slurm-wlm munge
# Checks that profiles/slurm submits what is heavy, keeps seconds-long steps local, asks for a GPU in training and
# generation alone, ends in the tables, and that a second run has nothing to do. Then a node dies in the middle of
# training, and after that the driver: the LoRAs have the bytes of an undisturbed run.
set -euo pipefail
repository=$(cd "$(dirname "$0")/../.." && pwd)
work=$(mktemp -d)
snakemake=$repository/.venv/bin/snakemake
host=$(hostname -s)

for program in munged slurmctld slurmd sbatch; do
  if ! PATH=$PATH:/usr/sbin command -v "$program" >/dev/null; then
    echo "tests/slurm: $program is absent; apt-get install slurm-wlm munge" >&2
    exit 1
  fi
done
if [ "$(id -u)" != 0 ]; then
  echo "tests/slurm: starting SLURM's daemons needs root" >&2
  exit 1
fi

# Jobs look for their cluster in the usual place: Snakemake takes SLURM's variables out of their environment.
conf=/etc/slurm/slurm.conf
if [ -e "$conf" ] && ! grep -q "^ClusterName=atlas-test" "$conf"; then
  echo "tests/slurm: this machine has a SLURM of its own ($conf); the test would take its place" >&2
  exit 1
fi

# Ends a daemon by its pid file and waits for it: asked first, killed after half a minute.
ended() {
  local pid
  pid=$(cat "$1" 2>/dev/null) || return 0
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 60); do
    kill -0 "$pid" 2>/dev/null || return 0
    sleep 0.5
  done
  kill -9 "$pid" 2>/dev/null || true
  sleep 0.5
}

# What went wrong comes last, after the logs: the end of a long output is what is kept of it.
failed=""
trap 'failed="line $LINENO: $BASH_COMMAND"' ERR
finish() {
  status=$?
  if [ $status != 0 ]; then
    echo "--- what jobs said"
    find "$work/atlas/.snakemake/slurm_logs" "$work/atlas/results" -name '*.log' -size +0 -mmin -10 \
      -exec grep -H -i -A 3 "error\|killed" {} + 2>/dev/null | cut -c1-300 | tail -n 60 || true
    echo "--- what SLURM and Snakemake said"
    tail -n 15 "$work"/slurm/*.log "$work"/*.log 2>/dev/null | cut -c1-300 || true
    scontrol -o show job 2>/dev/null | grep -o "JobId=[0-9]*\|JobState=[^ ]*\|Reason=[^ ]*\|Comment=[^ ]*\|NodeList=[^ ]*" |
      paste -s -d ' ' | sed 's/ JobId/\nJobId/g' || true
    echo "tests/slurm: failed at $failed"
  fi
  [ -z "${driver:-}" ] || kill -9 "$driver" 2>/dev/null || true
  # The daemons write into the folder until they have ended: it is removed after that, and the test's verdict is not
  # theirs to change.
  for daemon in slurmd-one slurmd-two slurmctld munged; do
    ended "$work/slurm/$daemon.pid"
  done
  for _ in $(seq 20); do
    rm -rf "$work" 2>/dev/null && break
    sleep 0.5
  done
  rm -f "$conf" /etc/slurm/gres.conf
  exit $status
}
trap finish EXIT

# --- munge and SLURM; all but the configuration lies under $work
mkdir -p "$work/slurm/state" "$work/slurm/spool/one" "$work/slurm/spool/two"
chmod 755 "$work" "$work/slurm"
head -c 1024 /dev/urandom > "$work/slurm/munge.key"
chmod 400 "$work/slurm/munge.key"
PATH=$PATH:/usr/sbin
munged --force --key-file="$work/slurm/munge.key" --socket="$work/slurm/munge.socket" --pid-file="$work/slurm/munged.pid" \
  --log-file="$work/slurm/munged.log" --seed-file="$work/slurm/munge.seed"
# A pretended GPU each, so that asking for one is really scheduled. The device file is only ever counted.
mkdir -p /etc/slurm
cat > /etc/slurm/gres.conf <<EOF
NodeName=one,two Name=gpu File=/dev/null
EOF
cat > "$conf" <<EOF
ClusterName=atlas-test
SlurmctldHost=$host(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket=$work/slurm/munge.socket
CredType=cred/munge
SlurmUser=root
StateSaveLocation=$work/slurm/state
SlurmdSpoolDir=$work/slurm/spool/%n
SlurmctldPidFile=$work/slurm/slurmctld.pid
SlurmdPidFile=$work/slurm/slurmd-%n.pid
SlurmctldLogFile=$work/slurm/slurmctld.log
SlurmdLogFile=$work/slurm/slurmd-%n.log
SlurmctldPort=16817
# A node that does not answer for so long is down; the one that dies below is said to be, as an admin would.
SlurmdTimeout=300
KillWait=2
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
# Nodes have as much memory as jobs ask for, whatever this machine has: they use little of it.
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=5,bf_interval=5
ReturnToService=2
GresTypes=gpu
MinJobAge=3600
NodeName=one NodeHostname=$host NodeAddr=127.0.0.1 Port=16818 CPUs=$(nproc) RealMemory=16000 Gres=gpu:1 State=UNKNOWN
NodeName=two NodeHostname=$host NodeAddr=127.0.0.1 Port=16819 CPUs=$(nproc) RealMemory=16000 Gres=gpu:1 State=UNKNOWN
PartitionName=main Nodes=one,two Default=YES MaxTime=INFINITE State=UP
EOF
slurmctld
slurmd -N one
slurmd -N two
idle() { [ "$(sinfo -h -N -o %t 2>/dev/null | sort -u)" = idle ]; }
for _ in $(seq 60); do
  idle && break
  sleep 1
done
sinfo -N
idle

# --- the study, from a copy, by the profile as it is
mkdir "$work/atlas"
(cd "$repository" && tar -c --exclude=./results --exclude='./.*' .) | tar -x -C "$work/atlas"
cd "$work/atlas"
cat > tiny.yaml <<EOF
study: tiny
resources: {device: cpu}
pictures: {artists: [maren, joris], per_artist: 10}
plan: {gallery: [4, 3], query: [3]}
training: {steps: 2, rank: 2, alpha: 2, batch: 2, warmup: 1}
generation: {num_inference_steps: [2], guidance_scale: [1], prompts: [a painting], worth: null, batch: 6}
weights: {probe: {samples: 4, num_inference_steps: 2, batch: 2, seed: 0, prompts: [a painting]}}
extractors: {clip: null, one_gradient: null}
embedding: {dimensions: 3, folds: 2}
evaluation: {bootstrap: 20, restarts: 2, permutations: 5, draws: 2, subsets: 2}
EOF
# There is no accounting here, so squeue tells what became of a job.
run=("$snakemake" --workflow-profile profiles/slurm --configfile tiny.yaml --slurm-status-command squeue
  --retries 0 --slurm-init-seconds-before-status-checks 5 --slurm-no-account)
"${run[@]}" > "$work/run.log" 2>&1

# --- what must be true: what was submitted, and with what
submitted=$(scontrol -o show job | awk '{
  rule = $0; sub(/.* Comment=rule_/, "", rule); sub(/ .*/, "", rule); sub(/_wildcards.*/, "", rule)
  print rule ($0 ~ /gres[:\/]gpu/ ? " on a GPU" : "")
}' | sort)
expected="ablation
base_sensitivity on a GPU
clustering
embed_controls
embed_pictures
embed_weights
extract_controls
extract_features
generate_pictures on a GPU
gram
gram
grid
list_loras
module_grams
module_weights
retrieval
structure
train_loras on a GPU
worth"
if [ "$submitted" != "$expected" ]; then
  echo "submitted jobs are not those that were expected:"
  diff <(echo "$expected") <(echo "$submitted")
  exit 1
fi
ls results/tiny/tables/clustering.parquet results/tiny/tables/retrieval.parquet results/tiny/charts/comparison.png
"${run[@]}" 2>&1 | grep "Nothing to be done"

# --- a node that dies, and a driver that dies, in the middle of training
cat > weather.yaml <<EOF
study: weather
pictures: {artists: [maren, joris], per_artist: 10}
plan: {gallery: [4, 3], query: [3]}
training: {steps: 200, rank: 2, alpha: 2, batch: 2, warmup: 1}
resources: {device: cpu, checkpoint_every: 5, artists_per_job: 2}
cache: cache-of-weather
EOF
files=(results/weather/loras/{maren,joris}/{00,01,02}.safetensors)
"$snakemake" --workflow-profile profiles/default --cores 2 --configfile weather.yaml -- loras > "$work/calm.log" 2>&1
mv results/weather "$work/calm"
rm -rf cache-of-weather
run=("$snakemake" --workflow-profile profiles/slurm --configfile weather.yaml --slurm-status-command squeue
  --retries 1 --slurm-init-seconds-before-status-checks 5 --slurm-no-account)
state=results/weather/state/maren/pack-00.pt

# Waits until training has been saved anew, a quarter of an hour at most. It is looked for often: a quick machine trains
# to the end within seconds.
saved() {
  touch "$work/since"
  for _ in $(seq 9000); do
    [ "$state" -nt "$work/since" ] && return 0
    sleep 0.1
  done
  echo "tests/slurm: no checkpoint of training within a quarter of an hour" >&2
  return 1
}
training() { squeue -h -t running -o "%i %N %k" | awk '/train_loras/{print $'"$1"'}'; }

"${run[@]}" -- loras > "$work/node.log" 2>&1 &
driver=$!
saved
job=$(training 1)
node=$(training 2)
echo "tests/slurm: node $node dies, where job $job trains"
kill -9 "$(cat "$work/slurm/slurmd-$node.pid")"
# Everything at once, as with a machine: a slurmstepd that outlives what it watches reports that as a failed job, and a
# Snakemake of the job that outlives both removes the outputs of the next attempt as its own.
family() {
  local child
  for child in $(pgrep -P "$1"); do family "$child"; done
  echo "$1"
}
processes=$(for process in $(pgrep -f "slurmstepd: \[$job\."); do family "$process"; done)
# shellcheck disable=SC2086 - a list
kill -9 $processes 2>/dev/null || true  # some end as their parents do
scontrol update "nodename=$node" state=down reason="its power is gone"
for _ in $(seq 300); do
  [ "$(squeue -h -t all -j "$job" -o %T)" = NODE_FAIL ] && break
  sleep 1
done
[ "$(squeue -h -t all -j "$job" -o %T)" = NODE_FAIL ]
saved
elsewhere=$(training 2)
[ -n "$elsewhere" ] && [ "$elsewhere" != "$node" ]
echo "tests/slurm: it goes on elsewhere; now the driver dies"
kill -9 "$driver"
wait "$driver" || true
saved
# It goes on alone; held from here, so that it is still there when the next driver comes, however quick this machine is.
pkill -STOP -f "$work/atlas/.snakemake/scripts/.*train_loras.py"
[ -n "$(training 1)" ]
# The node comes back as it registers (ReturnToService); asked to resume after that, SLURM refuses, so nobody asks.
slurmd -N "$node"
serves() { sinfo -h -N -n "$node" -o %t 2>/dev/null | grep -qxE "idle|mix|alloc"; }
for _ in $(seq 60); do
  serves && break
  sleep 1
done
serves
"${run[@]}" --unlock > "$work/unlock.log" 2>&1
"${run[@]}" -- loras > "$work/run.log" 2>&1
grep "jobs that an earlier run left are cancelled" "$work/run.log"
for file in "${files[@]}"; do
  cmp "$file" "$work/calm/${file#results/weather/}"
done
grep "going on from step" results/weather/logs/train/maren.log
"${run[@]}" -- loras 2>&1 | grep "Nothing to be done"
echo "tests/slurm: 1 passed, 0 failed"

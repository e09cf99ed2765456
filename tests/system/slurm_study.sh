#!/usr/bin/env bash
# The smoke study as Slurm jobs, through profiles/slurm, against an undisturbed local run.
#
#   make slurm                  or: bash tests/system/slurm_study.sh [config/smoke.yaml]
#
# Starts a Slurm of one node (this machine) in a temporary folder, with a munge of its own, listening on the loopback
# address alone; installs Debian's slurm-wlm and munge where they are missing and it may. The study is killed once by
# kill -9: its jobs must be cancelled, and the same command must finish it. Ends by comparing results.csv (all columns
# but seconds) and predictions, byte by byte. Ends what it started, however it ends.
set -euo pipefail
cd "$(dirname "$0")/../.."
config=${1:-config/smoke.yaml}
python=$PWD/.venv/bin/python
work=$(mktemp -d /tmp/icssl-slurm.XXXXXX)
pids=()

finish() {
    set +e
    if [ -z "$passed" ]; then
        for log in "$work"/log/*.log "$work"/*.txt "$work"/cluster/study.log; do
            echo "== $log"
            tail -n 12 "$log"
        done
    fi
    for pid in $(pgrep -P $$); do  # a study that still runs; Snakemake then cancels its jobs
        [[ " ${pids[*]} " == *" $pid "* ]] || kill "$pid" 2>/dev/null
    done
    scancel --user="$(id -un)" 2>/dev/null
    for _ in $(seq 100); do squeue -h 2>/dev/null | grep -q . || break; sleep 0.3; done
    for pid in $(printf '%s\n' "${pids[@]}" | tac); do
        kill "$pid" 2>/dev/null
        for _ in $(seq 100); do kill -0 "$pid" 2>/dev/null || break; sleep 0.1; done
        kill -9 "$pid" 2>/dev/null
    done
    [ -n "$passed" ] || { echo "failed; all of it is in $work" >&2; exit 1; }
    rm -rf "$work"
}
passed=
trap finish EXIT

if ! { command -v munged && command -v slurmctld && command -v slurmd && command -v sbatch; } >/dev/null; then
    [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null ||
        { echo "needs slurm-wlm and munge: apt-get install slurm-wlm munge" >&2; exit 1; }
    apt-get update -qq || true
    # RUNLEVEL=1: the packages shall not start services of their own
    RUNLEVEL=1 DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends slurm-wlm munge >/dev/null
fi

mkdir -p "$work"/{log,state,spool,munge}
chmod 755 "$work" "$work"/spool
chmod 700 "$work"/munge
dd if=/dev/urandom of="$work/munge/key" bs=128 count=1 status=none
chmod 400 "$work/munge/key"

free_port() { "$python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }
host=$(hostname -s)
memory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.9)}' /proc/meminfo)
cat > "$work/slurm.conf" <<EOF
ClusterName=icssl
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CryptoType=crypto/munge
CommunicationParameters=NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$work/log/jobs.txt
SchedulerType=sched/backfill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MpiDefault=none
ReturnToService=2
MinJobAge=300
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/log/slurmctld.log
SlurmdLogFile=$work/log/slurmd.log
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc) RealMemory=$memory State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP
EOF
export SLURM_CONF=$work/slurm.conf
# Snakemake's plugin takes all SLURM_* variables from the srun inside a job, which then looks in /etc/slurm.
mkdir "$work/bin"
printf '#!/bin/sh\nSLURM_CONF=%s exec %s "$@"\n' "$SLURM_CONF" "$(command -v srun)" > "$work/bin/srun"
chmod 755 "$work/bin/srun"
export PATH=$work/bin:$PATH

munged --foreground --force --key-file="$work/munge/key" --socket="$work/munge.socket" --num-threads=2 \
    --pid-file="$work/munge/pid" --seed-file="$work/munge/seed" > "$work/log/munged.log" 2>&1 &
pids+=($!)
for _ in $(seq 50); do [ -S "$work/munge.socket" ] && break; sleep 0.1; done
slurmctld -D > "$work/log/slurmctld.out.log" 2>&1 &
pids+=($!)
slurmd -D -N "$host" > "$work/log/slurmd.out.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do sinfo -h -o %T 2>/dev/null | grep -q '^idle$' && break; sleep 0.2; done
echo "Slurm $(sinfo --version | cut -d' ' -f2): node $(sinfo -h -o '%n %T %c cores')"

study() { "$python" -m icssl_lib.runs study "$config" --out "$work/$1" "${@:2}" > "$work/$1.txt" 2>&1; }

study local
echo "local:   $(grep '^Done' "$work/local.txt")"
"$python" - "$work" "$config" <<'EOF'
import signal, subprocess, sys, time
from pathlib import Path

out, command = Path(sys.argv[1]) / "cluster", [sys.executable, "-m", "icssl_lib.runs", "study", sys.argv[2]]
with (out.parent / "killed.txt").open("w") as log:
    process = subprocess.Popen([*command, "--out", out, "--profile", "profiles/slurm"], stdout=log, stderr=log)
queue = lambda: subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout.splitlines()
until = time.monotonic() + 900
while not list(out.glob("records/*/*/*.json")):
    assert process.poll() is None and time.monotonic() < until, "no record"
    time.sleep(0.5)
running = len(queue())
process.send_signal(signal.SIGKILL)
process.wait()
killed = time.monotonic()
while queue():
    assert time.monotonic() < killed + 120, f"jobs go on: {queue()}"
    time.sleep(0.2)
print(f"killed the study with {running} jobs queued or running; {time.monotonic() - killed:.1f} s later none was left")
EOF
flock --wait 60 "$work/cluster/.lock" true  # Snakemake holds it until it has cancelled its jobs
again=$(date +%FT%T)
study cluster --profile profiles/slurm
echo "cluster: $(grep '^Done' "$work/cluster.txt")"

ended=$(grep -c 'JobState=COMPLETED' "$work/log/jobs.txt")
echo "Slurm's log of ended jobs: $(grep -oE 'JobState=[A-Z]+' "$work/log/jobs.txt" | sort | uniq -c | tr -s ' \n' ' ')"
grep -oE '^JobId=[0-9]+|JobState=[A-Z]+|Partition=[^ ]+|StartTime=[^ ]+|EndTime=[^ ]+' "$work/log/jobs.txt" |
    paste -d ' ' - - - - - | sed -n '1,3p'
[ "$ended" -ge 10 ]
# Those that the kill cut short may have failed; none of the second call's may.
failed=$(grep -E 'JobState=(FAILED|TIMEOUT|NODE_FAIL)' "$work/log/jobs.txt" |
    awk -v again="$again" 'match($0, /StartTime=[^ ]+/) && substr($0, RSTART + 10, RLENGTH - 10) >= again' || true)
[ -z "$failed" ] || { echo "$failed"; exit 1; }

"$python" - "$work" <<'EOF'
import sys
from pathlib import Path

sys.path.insert(0, "tests/system")
from kill_study import numbers

local, cluster = (numbers(Path(sys.argv[1]) / run) for run in ("local", "cluster"))
assert len(local) > 1000
assert local == cluster, "the cluster's numbers are others"
print("results.csv, seconds aside, and predictions are byte for byte those of the local run")
EOF
passed=1

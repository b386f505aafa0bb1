#!/usr/bin/env bash
# A SLURM of one node on this machine, for the tests: Debian's packages, as root.
#   tests/slurm/slurm.sh install   apt-get
#   tests/slurm/slurm.sh start     munged, slurmctld, slurmd
#   tests/slurm/slurm.sh stop
# Where that cannot be, it says why in one line and ends with status 3: the tests then skip.
set -euo pipefail

name=ocp_faenet_tests
state=/var/tmp/ocp-faenet-slurm

cannot() {
    printf 'slurm: %s\n' "$1" >&2
    exit 3
}

as_root() {
    [[ $(id -u) -eq 0 ]] || cannot 'needs root'
}

installed() {
    local program
    for program in slurmctld slurmd munged unmunge sbatch; do
        command -v "$program" >/dev/null || return 1
    done
}

install_packages() {
    installed && return
    as_root
    command -v apt-get >/dev/null || cannot 'no apt-get here; install slurm-wlm and munge by hand'
    export DEBIAN_FRONTEND=noninteractive
    local log
    log=$(mktemp)
    if ! { apt-get update -q && apt-get install -q -y --no-install-recommends slurm-wlm munge; } \
        >"$log" 2>&1; then
        tail -n 3 "$log" >&2
        cannot 'apt-get could not install slurm-wlm and munge'
    fi
    rm -f "$log"
}

# Two processors at least, for jobs of two ranks; two fake GPUs, for jobs that ask for some.
write_configuration() {
    local memory processors
    memory=$(awk '/MemTotal/ { print int($2 / 1024) }' /proc/meminfo)
    processors=$(getconf _NPROCESSORS_ONLN)
    mkdir -p "$state/state" "$state/spool" /etc/slurm
    touch "$state/gpu0" "$state/gpu1"
    printf 'Name=gpu File=%s/gpu[0-1]\n' "$state" >/etc/slurm/gres.conf
    cat >/etc/slurm/slurm.conf <<CONF
ClusterName=$name
SlurmctldHost=localhost
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$state/state
SlurmdSpoolDir=$state/spool
SlurmctldPidFile=$state/slurmctld.pid
SlurmdPidFile=$state/slurmd.pid
SlurmctldLogFile=$state/slurmctld.log
SlurmdLogFile=$state/slurmd.log
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=2,batch_sched_delay=1
KillWait=5
MinJobAge=3600
ReturnToService=2
SlurmdParameters=config_overrides
GresTypes=gpu
NodeName=localhost CPUs=$((processors > 2 ? processors : 2)) RealMemory=$memory Gres=gpu:2 State=UNKNOWN
PartitionName=debug Nodes=localhost Default=YES MaxTime=INFINITE State=UP
CONF
}

start_munge() {
    munge -n 2>/dev/null | unmunge >/dev/null 2>&1 && return
    mkdir -p /run/munge /var/log/munge /var/lib/munge
    chown -R munge: /run/munge /var/log/munge /var/lib/munge /etc/munge
    runuser -u munge -- "$(command -v munged)"
    for _ in $(seq 20); do
        munge -n 2>/dev/null | unmunge >/dev/null 2>&1 && return
        sleep 0.5
    done
    cannot 'munged does not answer'
}

start() {
    idle && return
    installed || cannot 'slurm-wlm and munge are not installed: tests/slurm/slurm.sh install'
    as_root
    if [[ -e /etc/slurm/slurm.conf ]] && ! grep -q "ClusterName=$name" /etc/slurm/slurm.conf; then
        cannot '/etc/slurm/slurm.conf is of another SLURM, which is left alone'
    fi
    write_configuration
    start_munge
    slurmctld
    slurmd -N localhost
    for _ in $(seq 60); do
        idle && return
        sleep 0.5
    done
    tail -n 5 "$state/slurmctld.log" "$state/slurmd.log" >&2 || true
    cannot 'the node did not become idle'
}

idle() {
    sinfo -h -p debug -t idle,mixed,allocated -o %n 2>/dev/null | grep -q localhost
}

stop() {
    local daemon
    for daemon in slurmd slurmctld; do
        [[ -s $state/$daemon.pid ]] && kill "$(cat "$state/$daemon.pid")" 2>/dev/null || true
    done
}

case ${1:-} in
install) install_packages ;;
start) start ;;
stop) stop ;;
*) cannot 'install, start or stop' ;;
esac

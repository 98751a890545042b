#!/usr/bin/env bash
# A real Slurm on this machine for the tests: start.sh start|stop FOLDER (a new folder for each start)
#
# munged, slurmctld, one slurmd per virtual node (64 CPUs and 8 pretended GPUs each) and, for sacct, slurmdbd on MariaDB;
# as root, without systemd, on loopback only. All it writes lies in FOLDER, but for the nodes' names in /etc/hosts.
# NODES=4; PORT=17000 is the first of twenty ports; ACCOUNTING=0 leaves sacct out; PYXIS=1 accepts --container-* (pyxis.c).
# Debian packages: slurmctld slurmd slurm-client munge slurmdbd slurm-wlm-mysql-plugin mariadb-server-core
# mariadb-client-core; for PYXIS gcc libc6-dev libslurm-dev.
set -Eeuo pipefail
command=$1
folder=$2
nodes=${NODES:-4} port=${PORT:-17000} accounting=${ACCOUNTING:-1} pyxis=${PYXIS:-0}
here=$(cd "$(dirname "$0")" && pwd)
host=$(hostname -s)
name=sim${port}n # node names: <name>1, <name>2, ...
export SLURM_CONF=$folder/slurm.conf
trap 'tail -qn 5 "$folder"/log/*.log >&2' ERR

until_true() { for _ in $(seq 150); do "$@" >/dev/null 2>&1 && return; sleep 0.1; done; echo "timed out: $*" >&2; return 1; }
lives() { [ -r "/proc/$1/status" ] && ! grep -q '^State:.*Z' "/proc/$1/status"; } # a zombie that nobody reaps is dead
gone() { ! lives "$1"; }

locked() { ( flock 9; "$@" ) 9>>/tmp/sft_hydra_hosts.lock; } # other clusters on this machine edit /etc/hosts too
add_hosts() { for node in $(seq "$nodes"); do echo "127.0.0.1 $name$node"; done >>/etc/hosts; }
remove_hosts() {
  hosts=$(grep -Ev "^127\.0\.0\.1 $name[0-9]+$" /etc/hosts)
  printf '%s\n' "$hosts" >/etc/hosts # in place: it is a mount in a container
}

configure() {
  mkdir -p "$folder"/{state,log,run,spool,gpus,munge}
  (umask 077 && head -c 128 /dev/urandom >"$folder/munge/key")
  # gres wants character devices
  for gpu in 0 1 2 3 4 5 6 7; do ln -sfn /dev/null "$folder/gpus/nvidia$gpu"; done
  # Slurm resolves names with AI_ADDRCONFIG: nothing resolves where 127.0.0.1 is the only address
  [ -n "$(hostname -I 2>/dev/null)" ] || ip addr add 127.0.0.2/32 dev lo 2>/dev/null || true
  # names must lead to 127.0.0.1: slurmd answers srun at its peer's address, which on loopback is always that one
  locked add_hosts
  cat >"$SLURM_CONF" <<CONF
ClusterName=sim
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmUser=root
AuthType=auth/munge
# a requeued job waits until its old credential is past: 5 s instead of 2 min
AuthInfo=socket=$folder/munge/socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
MailProg=/bin/true
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
# without a default a job takes all memory of its node
DefMemPerCPU=256
# the nodes claim more CPUs and memory than there are
SlurmdParameters=config_overrides
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
KillWait=3
MinJobAge=${MIN_JOB_AGE:-86400}
GresTypes=gpu
NodeName=$name[1-$nodes] NodeHostname=$host NodeAddr=127.0.0.1 Port=$((port + 4))-$((port + 3 + nodes)) CPUs=64 RealMemory=262144 Gres=gpu:8
PartitionName=batch Nodes=ALL Default=YES DefaultTime=10 PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL DefaultTime=10 PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL DefaultTime=10 PriorityTier=100 PreemptMode=OFF
CONF
  # naming the v1 plugin keeps slurmd from probing /sys/fs/cgroup; no cgroup is used
  echo "CgroupPlugin=cgroup/v1" >"$folder/cgroup.conf"
  printf '%s\n' AutoDetect=off "NodeName=$name[1-$nodes] Name=gpu File=$folder/gpus/nvidia[0-7]" >"$folder/gres.conf"
  if [ "$pyxis" = 1 ]; then
    gcc -shared -fPIC -o "$folder/pyxis.so" "$here/pyxis.c"
    echo "required $folder/pyxis.so" >"$folder/plugstack.conf"
  fi
}

start_accounting() {
  cat >>"$SLURM_CONF" <<CONF
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((port + 1))
AccountingStoragePass=$folder/munge/socket
CONF
  cat >"$folder/slurmdbd.conf" <<CONF
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge/socket
CommunicationParameters=NoInAddrAny
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort=$((port + 2))
StorageUser=root
StorageLoc=slurm
PidFile=$folder/run/slurmdbd.pid
LogFile=$folder/log/slurmdbd.log
CONF
  chmod 600 "$folder/slurmdbd.conf"
  mariadb-install-db --no-defaults --user=root --datadir="$folder/mysql" --auth-root-authentication-method=normal \
    --skip-test-db >"$folder/log/mariadb-install.log" 2>&1
  setsid mariadbd --no-defaults --user=root --datadir="$folder/mysql" --bind-address=127.0.0.1 --port=$((port + 2)) \
    --socket="$folder/run/mysql.sock" --pid-file="$folder/run/mariadbd.pid" --skip-grant-tables \
    --innodb-buffer-pool-size=64M --innodb-flush-log-at-trx-commit=0 --innodb-lock-wait-timeout=900 \
    </dev/null >"$folder/log/mariadbd.log" 2>&1 &
  until_true test -S "$folder/run/mysql.sock"
  slurmdbd
  until_true bash -c "exec 3<>/dev/tcp/127.0.0.1/$((port + 1))"
  sacctmgr -i -Q add cluster sim >/dev/null # slurmctld must find its cluster
}

start() {
  configure
  munged --force --key-file="$folder/munge/key" --socket="$folder/munge/socket" --pid-file="$folder/run/munged.pid" \
    --log-file="$folder/log/munged.log" --seed-file="$folder/munge/seed"
  [ "$accounting" = 0 ] || start_accounting
  slurmctld
  for node in $(seq "$nodes"); do
    mkdir -p "$folder/spool/$name$node"
    slurmd -N "$name$node"
  done
  until_true bash -c "[ \$(sinfo -h -r -N -p batch -t idle -o %N | wc -l) = $nodes ]"
}

stop() { # jobs first, or their steps outlive the daemons; then the daemons, each by its pid file
  squeue -h -o %A | xargs -r scancel --quiet --full --signal=KILL || true
  scancel --quiet -u root || true
  until_true bash -c '[ -z "$(squeue -h)" ]' || true
  for file in "$folder"/run/{slurmd.*,slurmctld,slurmdbd,mariadbd,munged}.pid; do
    [ -s "$file" ] || continue
    pid=$(cat "$file")
    kill "$pid" 2>/dev/null || continue
    until_true gone "$pid"
  done
  locked remove_hosts
}

"$command"

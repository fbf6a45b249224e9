#!/bin/sh
# Distribute one training run over two machines. Run this on both, at about the same time and with the same options:
#
#   FIRST=192.168.1.10 sh examples/two_machines.sh --recipe quick --shards 4
#
# docs/distributed.md explains it.
set -eu

FIRST=${FIRST:?give the address of the first machine, e.g. FIRST=192.168.1.10}
PORT=${PORT:-29500}             # on the first machine, where the processes meet
INTERFACE=${INTERFACE:-eth0}    # of this machine: the one that the others can reach; list them with: ip -brief address
MACHINES=${MACHINES:-2}         # number of machines; with 1:2 the first goes on alone if the second dies
TRAINING=${TRAINING:-onecycle}  # a name, the same on all machines and different for each run
THREADS=${THREADS:-2}           # per process; runs are bit-identical only with the same number of threads

here=$(ip -4 -oneline address show dev "$INTERFACE" 2>/dev/null | awk '{ sub("/.*", "", $4); print $4; exit }')
if [ -z "$here" ]; then
  echo "$INTERFACE has no IPv4 address; name this machine's interface: INTERFACE=..." >&2
  exit 2
fi

# Use addresses and interfaces, not host names. Many machines resolve their own name to 127.0.1.1: the others cannot
# reach that address, and torchrun would not detect that this machine is the first.
if [ "$here" = "$FIRST" ]; then first=true; else first=false; fi
export OMP_NUM_THREADS="$THREADS" GLOO_SOCKET_IFNAME="$INTERFACE"

# In torch 2.13 a restarted machine cannot rejoin if the processes share torchrun's store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun --nnodes "$MACHINES" --nproc-per-node 1 --max-restarts 3 --rdzv-id "$TRAINING" \
  --rdzv-backend c10d --rdzv-endpoint "$FIRST:$PORT" --rdzv-conf "is_host=$first" --local-addr "$here" \
  -m onecycle train "$@"

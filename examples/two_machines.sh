#!/bin/sh
# One training over two machines. On each of them, at about the same time, with the same options:
#
#   FIRST=192.168.1.10 sh examples/two_machines.sh --recipe quick --shards 4
#
# docs/cluster.md explains it.
set -eu

FIRST=${FIRST:?give the address of the first machine, e.g. FIRST=192.168.1.10}
PORT=${PORT:-29500}             # of the first machine, where all meet
INTERFACE=${INTERFACE:-eth0}    # of this machine, the one with an address that the others reach; see: ip -brief address
MACHINES=${MACHINES:-2}         # how many; with 1:2 the first goes on when the second has died
TRAINING=${TRAINING:-onecycle}  # a name for it, the same on all machines and another for every training
THREADS=${THREADS:-2}           # of a process; a run repeats to the last bit where all have as many

here=$(ip -4 -oneline address show dev "$INTERFACE" 2>/dev/null | awk '{ sub("/.*", "", $4); print $4; exit }')
if [ -z "$here" ]; then
  echo "$INTERFACE has no IPv4 address; name this machine's interface: INTERFACE=..." >&2
  exit 2
fi

# Addresses and interfaces, not names: many a machine takes its own name for 127.0.1.1, where no other finds it, and
# would not know that it is the first.
if [ "$here" = "$FIRST" ]; then first=true; else first=false; fi
export OMP_NUM_THREADS="$THREADS" GLOO_SOCKET_IFNAME="$INTERFACE"

# In torch 2.13 a machine that comes back cannot take part again where the processes meet at the machines' own store.
export TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1

exec torchrun --nnodes "$MACHINES" --nproc-per-node 1 --max-restarts 3 --rdzv-id "$TRAINING" \
  --rdzv-backend c10d --rdzv-endpoint "$FIRST:$PORT" --rdzv-conf "is_host=$first" --local-addr "$here" \
  -m onecycle train "$@"

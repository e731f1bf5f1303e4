#!/usr/bin/env bash
# n processes of one run on this machine: one per GPU where there are GPUs, else on CPU with simulated devices.
#
#     launch/local.sh                                    # the three lines below
#     PROCESSES=4 launch/local.sh --config.seed=1        # any of them from outside; flags go to the command
#     launch/local.sh --dry_run                          # print the command of every process, start nothing
#
# Ends with the run's exit code: 0 done, 2 a mistake to mend, 75 saved and stopped by a signal.
set -euo pipefail

COMMAND="${COMMAND:-python -m cpt.main --config=configs/pile_to_slimpajama.py}"
PROCESSES="${PROCESSES:-}" # empty: the number of GPUs, or 2 on CPU
DEVICES="${DEVICES:-2}"    # simulated devices of each process on CPU

LOGS="${LOGS:-runs/logs/local}"
RELAUNCHES="${RELAUNCHES:-3}" # how often, after a run that ended saved (75) or was killed
GRACE="${GRACE:-120}"         # seconds that the others have when one process has ended badly
PORT="${PORT:-}"              # of the coordinator; empty: a free one

die() {
  echo "launch error: $*" >&2
  exit 2
}

at_least() {
  [[ "${!1}" =~ ^[0-9]+$ && "${!1}" -ge "$2" ]] || die "$1=${!1}: a whole number, at least $2, is needed"
}

count_gpus() {
  if [[ "${JAX_PLATFORMS:-}" == cpu* ]] || ! command -v nvidia-smi > /dev/null; then
    echo 0
  else
    { nvidia-smi -L 2> /dev/null || true; } | grep -c '^GPU' || true
  fi
}

free_port() {
  local port
  for _ in $(seq 50); do
    port=$((20000 + RANDOM % 10000)) # below the range that outgoing connections take theirs from
    if ! (exec 3<> "/dev/tcp/127.0.0.1/$port") 2> /dev/null; then
      echo "$port"
      return
    fi
  done
  die "no free port between 20000 and 30000; give one with PORT=..."
}

# command_of PROCESS PORT: sets `line`, an array.
command_of() {
  line=(env)
  if ((gpus > 0)); then
    line+=("CUDA_VISIBLE_DEVICES=$1")
  else
    line+=(JAX_PLATFORMS=cpu "XLA_FLAGS=${XLA_FLAGS:+$XLA_FLAGS }--xla_force_host_platform_device_count=$DEVICES")
  fi
  line+=("${words[@]}")
  if ((PROCESSES > 1)); then
    line+=("--coordinator=127.0.0.1:$2" "--processes=$PROCESSES" "--process=$1")
  fi
}

start() {
  local i
  pids=() codes=()
  for ((i = 0; i < PROCESSES; i++)); do
    command_of "$i" "$port"
    # The reader must outlive a Ctrl-C, or the last lines of a run that saves are lost.
    "${line[@]}" < /dev/null > >(trap '' INT TERM && prefix "$i" | tee -a "$LOGS/process-$i.log") 2>&1 &
    pids+=($!) codes+=("")
  done
}

prefix() {
  local text
  while IFS= read -r text || [[ -n "$text" ]]; do printf '[%s] %s\n' "$1" "$text"; done
}

signal_all() {
  local i
  for ((i = 0; i < ${#pids[@]}; i++)); do
    [[ -n "${codes[i]}" ]] || kill "-$1" "${pids[i]}" 2> /dev/null || true
  done
}

# Waits for all. When one dies, the others get SIGTERM; when one stops saved (75) they know of it and are left to finish.
# Who has not ended GRACE seconds later is killed, unless we were asked to stop: then a second signal does that.
follow() {
  local i running deadline="" forced=""
  first=0 killed=""
  while :; do
    running=0
    for ((i = 0; i < PROCESSES; i++)); do
      [[ -z "${codes[i]}" ]] || continue
      if kill -0 "${pids[i]}" 2> /dev/null; then
        running=1
        continue
      fi
      codes[i]=0
      wait "${pids[i]}" 2> /dev/null || codes[i]=$?
      if ((codes[i] == 137)) && [[ -z "$forced" ]]; then killed=1; fi
      if ((codes[i] != 0 && first == 0)); then
        first="${codes[i]}" deadline=$((SECONDS + GRACE))
        [[ -z "$asked" ]] || continue
        ((PROCESSES == 1)) || echo "launch: process $i ended with code $first; the others have $GRACE s to end"
        ((first == 75)) || signal_all TERM
      fi
    done
    ((running)) || return 0
    if [[ -n "$deadline" && -z "$asked" ]] && ((SECONDS > deadline)); then
      forced=1
      signal_all KILL
    fi
    sleep 0.2 &
    wait $! || true # unlike a sleep in the foreground, `wait` lets a trap run at once
  done
}

# Sets `code`, the launch's: a mistake (2), else a process that was killed, which explains how its peers ended, else the
# first bad end; "saved" (75) rather than a death by a signal.
judge() {
  local c
  code="$first"
  if [[ -n "$killed" ]]; then code=137; fi
  for c in "${codes[@]}"; do
    if ((c == 75 && code > 128)); then code=75; fi
  done
  for c in "${codes[@]}"; do
    if ((c == 2)); then code=2; fi
  done
}

# shellcheck disable=SC2329  # the traps below call it
on_signal() {
  asked="$1"
  echo "launch: SIG$1; passing it on, the run saves and stops"
  signal_all "$2"
}

dry=""
read -r -a words <<< "$COMMAND"
for word in "$@"; do
  case "$word" in
    --dry_run) dry=1 ;;
    --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" && exit 0 ;;
    *) words+=("$word") ;;
  esac
done
((${#words[@]} > 0)) || die "COMMAND is empty; e.g. COMMAND='python -m cpt.main --config=configs/pile_to_slimpajama.py'"
gpus="$(count_gpus)"
: "${PROCESSES:=$((gpus > 0 ? gpus : 2))}"
at_least PROCESSES 1
at_least DEVICES 1
at_least RELAUNCHES 0
at_least GRACE 0
((gpus == 0 || PROCESSES <= gpus)) || die "PROCESSES=$PROCESSES: this machine has $gpus GPUs (JAX_PLATFORMS=cpu trains without)"

if [[ -n "$dry" ]]; then
  port="${PORT:-$(free_port)}"
  for ((i = 0; i < PROCESSES; i++)); do
    command_of "$i" "$port"
    printf 'process %d:' "$i"
    printf ' %q' "${line[@]}"
    printf '\n'
  done
  exit 0
fi

mkdir -p "$LOGS"
set -m # a process group for each process: Ctrl-C reaches it once, through us, not twice
asked=""
trap 'on_signal TERM TERM' TERM
trap 'on_signal INT INT' INT
trap 'on_signal HUP TERM' HUP # a closed terminal
for ((attempt = 0; ; attempt++)); do
  port="${PORT:-$(free_port)}"
  start
  follow
  judge
  if [[ -n "$asked" ]] || ((code != 75 && code != 137)); then break; fi
  if ((attempt >= RELAUNCHES)); then
    echo "launch: ended with code $code, $attempt relaunches are used up; the same command goes on"
    break
  fi
  echo "launch: ended with code $code; relaunch $((attempt + 1)) of $RELAUNCHES"
done
((code == 0)) || echo "launch: code $code; logs: $LOGS/process-*.log" >&2
exit "$code"

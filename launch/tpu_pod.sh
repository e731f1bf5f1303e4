#!/usr/bin/env bash
# One run on all hosts of a TPU pod: a queued resource is asked for, the checkout installed, the run started and followed.
#
#     launch/tpu_pod.sh                        # the three lines below; flags go to the command
#     launch/tpu_pod.sh --dry_run              # print every gcloud command, call none
#     POD=existing launch/tpu_pod.sh           # a TPU VM that is there already
#     launch/tpu_pod.sh --delete               # give the TPUs back
#
# Ctrl-C leaves the run going; the same command again follows it. A preempted pod is asked for anew and the run goes on
# from its last checkpoint, which therefore lies in a bucket. Each host keeps its log in ~/cpt.log.
set -euo pipefail

NAME="${NAME:-cpt}"
ZONE="${ZONE:-us-east5-a}" ACCELERATOR="${ACCELERATOR:-v5p-64}"
COMMAND="${COMMAND:-python -m cpt.main --config=configs/pile_to_slimpajama.py:410m --workdir=gs://BUCKET/runs/410m}"

RUNTIME="${RUNTIME:-}"        # version of the TPU VM's image; empty: by the accelerator
POD="${POD:-queued}"          # queued or existing
SPOT="${SPOT:-1}"             # 1: preemptible; 0: on demand
RELAUNCHES="${RELAUNCHES:-20}" # how often, after code 75 or a preemption
WAIT="${WAIT:-30}"            # seconds between looks at the queue

die() {
  echo "launch error: $*" >&2
  exit 2
}

# The words as one would type them.
quoted() {
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=@%+,~-]+$ ]] || word="'${word//\'/\'\\\'\'}'"
    line+="${line:+ }$word"
  done
  echo "$line"
}

# gcloud, or in a dry run the line that would call it.
cloud() {
  if [[ -n "$dry" ]]; then quoted gcloud "$@"; else gcloud "$@"; fi
}

queue() { cloud compute tpus queued-resources "$1" "$NAME" "--zone=$ZONE" "${@:2}"; }

# on WORKER COMMAND: a pod that is preempted answers no more, which the connection must notice.
on() {
  cloud compute tpus tpu-vm ssh "$NAME" "--zone=$ZONE" "--worker=$1" --ssh-flag=-oServerAliveInterval=30 "--command=$2"
}

state() {
  if [[ "$POD" == existing ]]; then
    gcloud compute tpus tpu-vm describe "$NAME" "--zone=$ZONE" '--format=value(state)' 2> /dev/null || true
  else
    gcloud compute tpus queued-resources describe "$NAME" "--zone=$ZONE" '--format=value(state.state)' 2> /dev/null || true
  fi
}

create() {
  local flags=("--node-id=$NAME" "--accelerator-type=$ACCELERATOR" "--runtime-version=$RUNTIME")
  if [[ "$SPOT" == 1 ]]; then flags+=(--spot); fi
  queue create "${flags[@]}"
}

delete() { queue delete --force --quiet; }

# Until the pod is there: asks for it, again where it was preempted.
have_pod() {
  local now told=""
  if [[ -n "$dry" ]]; then
    [[ "$POD" == existing ]] || create
    return
  fi
  while :; do
    now="$(state)"
    case "$POD:$now" in
      *:ACTIVE | existing:READY) return ;;
      existing:*) die "TPU VM $NAME in $ZONE: ${now:-no such one}; start it, or let this script ask for one (POD=queued)" ;;
      queued:) create ;;
      queued:SUSPENDED | queued:FAILED) echo "launch: $NAME is $now; asking anew" && delete ;;
      *) [[ "$now" == "$told" ]] || echo "launch: $NAME is $now; looking every $WAIT s" ;;
    esac
    told="$now"
    sleep "$WAIT"
  done
}

# The checkout as it is, without what git ignores.
pack() {
  (comm -23 <(git ls-files -co --exclude-standard | sort) <(git ls-files -d | sort) | tar -czf "$1" -T -)
}

# worker HOSTS COMMAND...
worker() { on "$1" "bash tpu_worker.sh $(quoted "${@:2}")"; }

install() {
  local archive="${TMPDIR:-/tmp}/cpt.tar.gz"
  [[ -n "$dry" ]] || pack "$archive" || return 1
  cloud compute tpus tpu-vm scp "$archive" launch/tpu_worker.sh "$NAME:~/" "--zone=$ZONE" --worker=all || return 1
  worker all install
}

# The exit code of the run, or nothing while it runs and where the pod is gone.
result() { { worker 0 result 2> /dev/null || true; } | { tr -d '\r' | grep -xE '[0-9]+' || true; }; }

# Sets `code`: the run's exit code, or "gone" where the pod was taken away.
run_once() {
  have_pod
  if ! { install && worker all start "${words[@]}"; }; then
    is_there && die "$NAME in $ZONE: installing or starting failed, see above; the pod is still yours (--delete gives it back)"
    code=gone
    return
  fi
  while :; do
    worker 0 follow || true
    code="$(result)"
    [[ -z "$code" ]] || break
    is_there || break
    echo "launch: lost the connection to $NAME; looking again in $WAIT s"
    sleep "$WAIT"
  done
  if [[ -z "$code" ]]; then code=gone; else worker all end; fi
}

is_there() { [[ "$(state)" =~ ^(ACTIVE|READY)$ ]]; }

image() {
  case "$ACCELERATOR" in
    v6e-*) echo v2-alpha-tpuv6e ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v4-* | v3-* | v2-*) echo tpu-ubuntu2204-base ;;
    *) die "ACCELERATOR=$ACCELERATOR: not known here; name its image with RUNTIME=... (v4-8, v5litepod-16, v5p-64, v6e-64 are known)" ;;
  esac
}

cd "$(dirname "$0")/.."
dry="" action=run
read -r -a words <<< "$COMMAND"
for word in "$@"; do
  case "$word" in
    --dry_run) dry=1 ;;
    --delete) action=delete ;;
    --help | -h) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" && exit 0 ;;
    *) words+=("$word") ;;
  esac
done
[[ "$POD" =~ ^(queued|existing)$ ]] || die "POD=$POD: queued or existing"
[[ "$RELAUNCHES" =~ ^[0-9]+$ ]] || die "RELAUNCHES=$RELAUNCHES: a whole number is needed"
[[ -n "$RUNTIME" ]] || RUNTIME="$(image)"
if [[ "$action" == delete ]]; then
  delete
  exit 0
fi
if [[ -n "$dry" ]]; then
  have_pod
  install
  worker all start "${words[@]}"
  worker 0 follow
  worker 0 result
  worker all end
  exit 0
fi
[[ "${words[*]}" != *BUCKET* ]] || die "COMMAND: put your bucket where BUCKET stands; what a pod keeps for itself is lost with it"
command -v gcloud > /dev/null || die "gcloud is not installed; see cloud.google.com/sdk, or look first: $0 --dry_run"
for ((attempt = 0; ; attempt++)); do
  run_once
  case "$code" in
    0) echo "launch: done; the TPUs are still yours, $0 --delete gives them back" && exit 0 ;;
    75 | gone) ;;
    *) echo "launch: the run ended with code $code; its log is ~/cpt.log on each host of $NAME" >&2 && exit "$code" ;;
  esac
  if ((attempt >= RELAUNCHES)); then
    echo "launch: $code; $attempt relaunches are used up; the same command goes on" >&2
    exit 75
  fi
  echo "launch: $code (75: saved, gone: preempted); relaunch $((attempt + 1)) of $RELAUNCHES"
done

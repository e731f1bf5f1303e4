#!/usr/bin/env bash
# What launch/tpu_pod.sh has each host of a pod do, in its home directory.
#
#     tpu_worker.sh install                    # unpack cpt.tar.gz into cpt/, install it into env/
#     tpu_worker.sh start python -m cpt.main --config=...       # detached, log in cpt.log
#     tpu_worker.sh follow | result | end      # the log until the run ends; its exit code; kill what is left
#
# A host on which the run still goes leaves it alone: install and start then do nothing.
set -euo pipefail
cd "$HOME"

running() {
  [[ -s cpt.pid ]] && kill -0 "$(cat cpt.pid)" 2> /dev/null
}

case "${1:-}" in
  install)
    if running; then exit 0; fi
    mkdir -p cpt
    tar -xzf cpt.tar.gz -C cpt
    # The Python of the image may be older than ours; uv brings one.
    python3 -m pip install -q --user uv
    python3 -m uv venv -q --allow-existing --python=3.11 env
    python3 -m uv pip install -q --python=env/bin/python -e './cpt[tpu]' gcsfs
    ;;
  start)
    if running; then
      echo "$(uname -n): the run still goes"
      exit 0
    fi
    rm -f cpt.exit
    cd cpt
    # shellcheck disable=SC2016  # it is the inner shell that has a "$@" and a $?
    PATH="$HOME/env/bin:$PATH" nohup setsid bash -c '"$@" >> ../cpt.log 2>&1; echo $? > ../cpt.exit' run "${@:2}" \
      < /dev/null > /dev/null 2>&1 &
    echo $! > ../cpt.pid
    ;;
  follow)
    touch cpt.log
    tail -s 0.2 -n 20 -F cpt.log --pid="$(cat cpt.pid)"
    ;;
  result)
    if [[ -s cpt.exit ]]; then cat cpt.exit; fi
    ;;
  end)
    # The other hosts end when the first does; one that hangs would keep the next launch from its TPUs.
    for ((second = 0; second < ${GRACE:-300}; second++)); do
      running || exit 0
      sleep 1
    done
    kill -KILL -- "-$(cat cpt.pid)"
    ;;
  *)
    echo "launch error: tpu_worker.sh ${1:-}: install, start, follow, result or end" >&2
    exit 2
    ;;
esac

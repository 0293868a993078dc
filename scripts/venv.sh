# make_venv ROOT LOCK: create or update ROOT/.venv with the packages of ROOT/LOCK. Sourced by the other scripts.
make_venv() {
  lock=$1/$2
  done=$1/.venv/$2
  cmp -s "$lock" "$done" && return
  if ! [ -w "$1" ]; then
    echo "$1/.venv does not match $2, and you have no permission to update it." >&2
    echo "Ask the owner of $1 to run scripts/doit once, or use a checkout of your own." >&2
    exit 3
  fi
  python=${PYTHON:-python3}
  if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
    echo "dmuc needs Python 3.11 or later with its venv module (on Debian: apt-get install python3-venv)." >&2
    echo "To use another Python than $python: PYTHON=/path/to/python3 $0" >&2
    exit 3
  fi
  echo "creating the virtual environment .venv from $2: half a minute, or two on a slow host" >&2
  log=$1/.venv.log
  : > "$log"
  show_venv "$1/.venv" "$lock" "$log" &
  shows=$!
  # For a new environment and for an update: an incomplete environment has no copy of the lock file.
  made=0
  "$python" -m venv "$1/.venv" >> "$log" 2>&1 &&
    "$1/.venv/bin/python" -u -m pip install --require-hashes --disable-pip-version-check --progress-bar off -r "$lock" \
      >> "$log" 2>&1 || made=$?
  kill "$shows" 2> /dev/null || true  # it has ended already without a terminal
  wait "$shows" 2> /dev/null || true
  if [ "$made" -eq 0 ]; then
    cp "$lock" "$done"
    rm -f "$log"
  else
    tail -n 15 "$log" >&2
    echo "The virtual environment could not be created; the whole log: $log" >&2
    exit 3
  fi
}

# show_venv VENV LOCK LOG: on a terminal, show how far pip has come: LOG has a line for each package that it has got, and the
# directory of each that it has installed ends in .dist-info.
show_venv() {
  [ -t 2 ] || return 0
  trap 'printf "\r\033[K" >&2; exit 0' TERM
  total=$(grep -c == "$2")
  while kill -0 $$ 2> /dev/null && sleep 0.3; do  # a job in the background is not ended by Ctrl-C
    got=$(grep -c -E '^(Collecting|Processing)' "$3" || true)
    set -- "$1" "$2" "$3" "$1"/lib/python3*/site-packages/*.dist-info
    installed=$(($# - 3))
    width=$(((got + installed) * 30 / (2 * total)))
    printf '\r\033[K[%-30s] %s packages: %s downloaded, %s installed' \
      "$(printf "%${width}s" '' | tr ' ' '#')" "$total" "$got" "$installed" >&2
  done
}

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
  echo "creating the virtual environment .venv from $2; this can take two minutes" >&2
  log=$1/.venv.log
  # For a new environment and for an update: an incomplete environment has no copy of the lock file.
  if "$python" -m venv "$1/.venv" > "$log" 2>&1 &&
    "$1/.venv/bin/python" -m pip install --quiet --require-hashes --disable-pip-version-check -r "$lock" >> "$log" 2>&1
  then
    cp "$lock" "$done"
    rm -f "$log"
  else
    tail -n 15 "$log" >&2
    echo "The virtual environment could not be created; the whole log: $log" >&2
    exit 3
  fi
}

# make_venv ROOT LOCK: have ROOT/.venv with exactly what ROOT/LOCK says. Sourced by the scripts beside it.
make_venv() {
  lock=$1/$2
  done=$1/.venv/$2
  cmp -s "$lock" "$done" && return
  if ! [ -w "$1" ]; then
    echo "$1/.venv is not as $2 says, and you may not write there." >&2
    echo "Have scripts/doit run once by whoever may, or use a checkout of your own." >&2
    exit 3
  fi
  python=${PYTHON:-python3}
  if ! "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2> /dev/null; then
    echo "dmuc needs Python 3.11 or later with its venv module (on Debian: apt-get install python3-venv)." >&2
    echo "Another Python than $python: PYTHON=/path/to/python3 $0" >&2
    exit 3
  fi
  echo "making the virtual environment .venv from $2" >&2
  log=$1/.venv.log
  # Whether this is the first time or an update: a half-made environment has no copy of the lock file.
  if "$python" -m venv "$1/.venv" > "$log" 2>&1 &&
    "$1/.venv/bin/python" -m pip install --quiet --require-hashes --disable-pip-version-check -r "$lock" >> "$log" 2>&1
  then
    cp "$lock" "$done"
    rm -f "$log"
  else
    tail -n 15 "$log" >&2
    echo "The virtual environment could not be made; the whole log: $log" >&2
    exit 3
  fi
}

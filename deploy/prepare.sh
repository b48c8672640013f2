#!/bin/sh
# Prepares a clone on a worker for a run: the environment of its requirements.lock, and the machine's DVC cache.
# Both are kept in LOCKSTEP_HOME and shared by all runs on this machine.
set -eu
home=${LOCKSTEP_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/lockstep}
hash=$(sha256sum requirements.lock | cut -c1-16)
environment=$home/environments/$hash
mkdir -p "$home/environments" "$home/dvc-cache"

exec 9>"$environment.lock"
flock 9 # two runs that start at once make one environment
if ! cmp -s requirements.lock "$environment/installed.lock"; then
  if [ -L "$environment" ]; then
    echo "$environment is a link to an environment of another requirements.lock: remove it" >&2
    exit 1
  fi
  echo "Installing requirements.lock into $environment: some minutes, once"
  ${PYTHON:-python3} -m venv --clear "$environment"
  "$environment/bin/python" -m pip install --quiet --disable-pip-version-check --no-deps -r requirements.lock
  cp requirements.lock "$environment/installed.lock"
fi
exec 9>&-

ln -sfn "$environment" .venv # flows/environment.py puts it first on PATH
if [ "$(git rev-parse --is-shallow-repository)" = true ]; then
  git fetch --quiet --unshallow
fi
git config user.email >/dev/null || git config user.email lockstep@localhost # tags and experiments need an author
git config user.name >/dev/null || git config user.name Lockstep
.venv/bin/dvc cache dir --local --quiet "$home/dvc-cache"
echo "Environment $hash, DVC cache $home/dvc-cache"

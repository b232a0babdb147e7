#!/usr/bin/env bash
# Installs vlm_ci from the checkout that this action is part of, and says which Python has it.
set -euo pipefail

root=$(cd "$GITHUB_ACTION_PATH/../../.." && pwd)
if [[ -n $GIVEN_PYTHON ]]; then
  # An engine's own environment: its torch and transformers stay.
  python=$GIVEN_PYTHON
  "$python" -m pip install --quiet --disable-pip-version-check "$root"
else
  make --no-print-directory -C "$root" install
  python=$root/.venv/bin/python
fi

key=none
if [[ $CACHE != none ]]; then
  options=(--device "${DEVICE:-cpu}")
  [[ -z $LOCK ]] || options+=(--cache-lock "$LOCK")
  key=$("$python" -m vlm_ci.cli cache key "${options[@]}")
fi
{
  echo "python=$python"
  echo "key=$key"
} >>"$GITHUB_OUTPUT"

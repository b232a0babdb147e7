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

# A compile cache is worth nothing on another GPU or another torch.
gpu=$(nvidia-smi --query-gpu=name --format=csv,noheader 2>/dev/null | sort -u | paste -sd+ -) || gpu=""
torch=$("$python" -c 'from importlib.metadata import version; print(version("torch"))')
{
  echo "python=$python"
  echo "key=${RUNNER_OS:-unknown}-$(printf %s "${gpu:-cpu}-torch-$torch" | tr -c 'A-Za-z0-9.+-' _)"
} >>"$GITHUB_OUTPUT"

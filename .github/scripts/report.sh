#!/usr/bin/env bash
# report.sh SHARDS MERGED: writes the run's page and its summary from what all shards left.
set -euo pipefail
shards=$1 merged=$2
mkdir -p "$merged"

junit=()
[[ ! -s $merged/junit.xml ]] || junit=(--junit "$merged/junit.xml")

if [[ -z $(find "$shards" -name result.json -print -quit 2>/dev/null) ]]; then
  echo "::error title=vlm-ci::no shard left a result"
  {
    echo 'No shard left a result.'
    echo
    # Indented text is code: what a test prints cannot end the block.
    [[ ! -s $merged/merge.txt ]] || sed 's/^/    /' "$merged/merge.txt"
  } >>"$GITHUB_STEP_SUMMARY"
  exit 1
fi
.venv/bin/vlm-ci report "$shards" --html "$merged/report.html" \
  --markdown "$merged/summary.md" "${junit[@]}"
cat "$merged/summary.md" >>"$GITHUB_STEP_SUMMARY"

#!/usr/bin/env bash
# merge.sh SHARDS MERGED: one JUnit file, one page and the job's summary of what COUNT shards left.
set -euo pipefail
shards=$1 merged=$2
root=$(cd "$GITHUB_ACTION_PATH/../../.." && pwd)
vlm_ci=$root/.venv/bin/vlm-ci
mkdir -p "$shards" "$merged"

# What shards left was written by the code under test.
if ! python3 "$root/.github/scripts/collect.py" "$shards" >"$merged/files.txt"; then
  echo 'Nothing was merged: the log of this job says why.' >>"$GITHUB_STEP_SUMMARY"
  exit 1
fi

code=0
xargs -d '\n' "$vlm_ci" junit merge --shards "$COUNT" -o "$merged/junit.xml" \
  <"$merged/files.txt" | tee "$merged/merge.txt" || code=$?

if [[ -n $(find "$shards" -name result.json -print -quit) ]]; then
  "$vlm_ci" report "$shards" --html "$merged/report.html" --markdown "$merged/summary.md" \
    --junit "$merged/junit.xml"
else
  {
    echo 'No shard left a result.'
    echo
    # Indented text is code: what a test prints cannot end the block.
    sed 's/^/    /' "$merged/merge.txt"
  } >"$merged/summary.md"
  code=1
fi
cat "$merged/summary.md" >>"$GITHUB_STEP_SUMMARY"
exit "$code"

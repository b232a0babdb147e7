#!/usr/bin/env bash
# Marks the guilty lines, and writes a page and the job's summary, from what the check left.
set -euo pipefail

if [[ -z $(find "$OUT" -name result.json -print -quit) ]]; then
  echo "::warning title=vlm-ci::the check left no result in $OUT: there is nothing to report"
  exit 0
fi
files=(--html "$OUT/report.html")
[[ $SUMMARY != true ]] || files+=(--markdown "$GITHUB_STEP_SUMMARY")
"$VLM_PYTHON" -m vlm_ci.cli report "$OUT" "${files[@]}" --annotations

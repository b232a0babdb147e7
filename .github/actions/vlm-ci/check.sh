#!/usr/bin/env bash
# Runs one shard as its environment says: the tests that TESTS names, or the suites of vlm_ci.
set -euo pipefail

refuse() {
  echo "::error title=vlm-ci::$1"
  exit 4
}

[[ $SHARD =~ ^([1-9][0-9]*)/[1-9][0-9]*$ ]] || refuse "shard '$SHARD' is not I/N, as in 1/4"
number=${BASH_REMATCH[1]}
[[ $CACHE =~ ^(none|read|write)$ ]] || refuse "cache '$CACHE' is not none, read or write"
[[ $REPEAT =~ ^[1-9][0-9]?$ ]] || refuse "repeat '$REPEAT' is not a number from 1 to 99"

tests=() extra=()
[[ -z $TESTS ]] || mapfile -t tests <<<"$TESTS"
[[ -z $ARGS ]] || mapfile -t extra <<<"$ARGS"
for name in "${tests[@]}"; do
  # A node id comes from a comment: it names a test, and is never an option of pytest, nor a file
  # of options (@).
  [[ -n $name && $name != [-@]* ]] || refuse "'$name' is no test: paths or node ids, one a line"
done

prefix=${TESTS:+vlm-}
options=()
option() { [[ -z $2 ]] || options+=("--$prefix$1=$2"); }
option target "$TARGET"
option recipe "$RECIPE"
option backend "$BACKEND"
option device "$DEVICE"
option profile "$PROFILE"
option examples "$EXAMPLES"
option seed "$SEED"
option shard "$SHARD"
option commit "$COMMIT"
option evidence "$EVIDENCE"
if [[ $CACHE != none ]]; then
  option cache "$STATE/compile"
  option cache-lock "$LOCK"
  option cache-scope "$([[ $CACHE == write ]] && echo trusted || echo untrusted)"
fi
option database "$STATE/examples"
# Who may not write does not decide which failing examples the next run tries.
[[ $CACHE == write ]] || options+=("--${prefix}database-readonly")

# The report that follows tells the step: also of a run that was killed.
options+=("--no-${prefix}github")

mkdir -p "$OUT" "$STATE"
code=0
for ((turn = 1; turn <= REPEAT; turn++)); do
  out=$OUT/results-$turn
  junit=$OUT/junit-shard-$number-attempt-$GITHUB_RUN_ATTEMPT-turn-$turn.xml
  pytest=(-n "$WORKERS" "--junitxml=$junit" "${extra[@]}")
  if [[ -n $TESTS ]]; then
    command=(-m pytest "${tests[@]}" "${options[@]}" "--vlm-out=$out" "${pytest[@]}")
  else
    command=(-m vlm_ci.cli run "${options[@]}" "--out=$out" -- "${pytest[@]}")
  fi
  "$VLM_PYTHON" "${command[@]}" || code=$?
done
exit "$code"

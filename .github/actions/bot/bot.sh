#!/usr/bin/env bash
# bot.sh AUDIT: lets the bot answer the comment that started this job.
set -euo pipefail
audit=$1

code=0
"$GITHUB_ACTION_PATH/../../../.venv/bin/vlm-ci" bot --event "$GITHUB_EVENT_PATH" \
  --audit "$audit" || code=$?
case $code in
  # 1: denied or not understood, which the bot has answered; 5: no command in the comment.
  0 | 1 | 5) exit 0 ;;
  *) exit "$code" ;;
esac

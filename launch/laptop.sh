#!/usr/bin/env bash
# One command on a laptop: sets rayemu up in .venv and runs launch/scenarios/laptop.yaml on a local Ray.
# Arguments go to `rayemu run`, e.g.  bash launch/laptop.sh --set run.batches=10 --out /tmp/first
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment
exec "$rayemu_venv/bin/rayemu" run "$rayemu_root/launch/scenarios/laptop.yaml" "$@"

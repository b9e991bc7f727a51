#!/usr/bin/env bash
# Sets rayemu up in .venv with the test extra and runs the tests.
#   --parity   also installs torch and transformers and runs the tests against them
#   --slow     also runs the tests marked slow
# Further arguments go to pytest.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

extras=(test)
pytest_args=()
for argument in "$@"; do
    case "$argument" in
        --parity) extras+=(parity) ;;
        --slow) pytest_args+=(-m "slow or not slow") ;;
        *) pytest_args+=("$argument") ;;
    esac
done
prepare_environment "${extras[@]}"
cd "$rayemu_root"
exec "$rayemu_venv/bin/python" -m pytest ${pytest_args[@]+"${pytest_args[@]}"}

#!/usr/bin/env bash
# Changes the code in small ways, one at a time (mutmut), and counts how many of the changes the tests notice.
# Slow: some minutes for a sample of every package, hours for all of them; CONTRIBUTING.md has the last score.
#   bash launch/mutants.sh                        a sample of every package
#   bash launch/mutants.sh protocol routing       of these; names as in launch/mutants.py
#   --count N, --seed S                           how many of a package, and which (default 60, 1)
#   --all                                         every change of the packages
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

prepare_environment test mutation
cd "$rayemu_root"
exec "$rayemu_venv/bin/python" launch/mutants.py "$@"

#!/usr/bin/env bash
# What a machine with a GPU has to show before long training: a model that trains from a mapped store and resumes,
# extraction of 30 policies on the largest model, no step that waits for the device, and a table of times, utilisation
# and memory. Needs Orrery with psutil and no simulator, torch 2.11 or later; takes under eight minutes, and names what
# it had no time for. Exit status 1 if something failed. With --device cpu the same runs with tiny sizes.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec "${PYTHON:-python3}" tests/gpu/check.py "$@"

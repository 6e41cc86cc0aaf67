#!/usr/bin/env bash
# Deploys the batch creator to an AWS account that has a bucket. See --help.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
[[ -x .venv/bin/python ]] || make setup
exec .venv/bin/python -u -m deploy.main "$@"

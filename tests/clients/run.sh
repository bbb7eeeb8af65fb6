#!/usr/bin/env bash
# Builds .venv-clients (Python clients, and npm's MCP conformance suite and axe-core beside it) and runs them.
set -euo pipefail
cd "$(dirname "$0")/../.."
PYTHON=${PYTHON:-$(command -v python3.11 || command -v python3)}
if ! cmp -s tests/clients/requirements.txt .venv-clients/installed.txt; then
  rm -rf .venv-clients
  "$PYTHON" -m venv .venv-clients
  .venv-clients/bin/pip install --quiet --disable-pip-version-check -r tests/clients/requirements.txt
  if command -v npm > /dev/null; then
    npm install --silent --no-audit --no-fund --prefix .venv-clients \
      @modelcontextprotocol/conformance@0.1.16 axe-core@4.14.1 node@22
  fi
  cp tests/clients/requirements.txt .venv-clients/installed.txt
fi
.venv-clients/bin/python -m pytest tests/clients -m 'not slow' -ra "$@"
.venv/bin/python -m pytest tests/pipelines/serving/test_page.py -ra

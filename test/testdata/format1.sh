#!/bin/sh
# Makes format1.tar.gz: state directories of an agent of before parameters were
# data (commit 569a9fb), one with a hold and one with a pause.
#
#   git worktree add /tmp/old 569a9fb && (cd /tmp/old && go build -o /tmp/agent ./cmd/agent)
#   AGENT=/tmp/agent sh test/testdata/format1.sh test/testdata/format1.tar.gz
set -eu
out=$(realpath "$1")
cd "$(mktemp -d)"
mkdir config
cat > config/base.yaml <<'END'
parameters:
  max_membrane_depth: 4
  esn_reservoir_size: 512
  bseries_max_order: 8
  enable_caching: true
  cache_ttl_seconds: 300
  enable_performance_monitoring: true
END
declare_size() {
  printf 'environment: production\ndescription: %s units\nparameters:\n  esn_reservoir_size: %s\n' "$1" "$1" > config/.new
  mv config/.new config/production.yaml
}
start() {
  "$AGENT" run --environment production --instance fixture --config config --engine e.sock --state "$1" --listen 127.0.0.1:0 &
  agent=$!
}
in_sync() {
  until "$AGENT" status --state "$1" --in-sync && "$AGENT" status --state "$1" | grep -q "esn_reservoir_size *$2"; do sleep 0.1; done
}
stop() { kill -INT "$1"; wait "$1"; }
"$AGENT" engine --socket e.sock & engine=$!
declare_size 1024; start held; in_sync held 1024; declare_size 2048; in_sync held 2048
"$AGENT" rollback --reason 'too slow' --state held
stop $agent
declare_size 1024; start paused; in_sync paused 1024
"$AGENT" pause --reason night --state paused
stop $agent; stop $engine
tar --sort=name --owner=0 --group=0 --numeric-owner -cf - held paused | gzip -9n > "$out"

package gitstore

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// quantiles reports p50 and p99 of what each round took, in microseconds.
func quantiles(b *testing.B, took []time.Duration) {
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)/2].Nanoseconds())/1000, "p50-us")
	b.ReportMetric(float64(took[len(took)*99/100].Nanoseconds())/1000, "p99-us")
}

// benchChange is a record of usual size, another one each time.
func benchChange(i int) record.Record {
	rec := change(64 + i%16000)
	rec.Description = fmt.Sprintf("Change %d of the benchmark", i)
	rec.Source = record.Source{Kind: "git", Location: "https://example.org/config.git", Revision: fmt.Sprintf("%040x", i), Author: "Ada L <ada@example.org>"}
	rec.Provenance = schema.Provenance{}
	for _, name := range params.Names() {
		rec.Provenance[name] = schema.Origin{Position: schema.Position{File: "production.yaml", Line: 4, Column: 3}, Layer: "environment"}
	}
	rec.Changes = rec.Config.Diff(params)
	return rec
}

// BenchmarkCommit is a Commit alone: what stands between a change and the
// engine. Confirm runs off the clock.
func BenchmarkCommit(b *testing.B) {
	s, _ := newFixture(b).open()
	applied(b, s, 1024)
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		rec := benchChange(i)
		start := time.Now()
		commit(b, s, rec)
		took = append(took, time.Since(start))
		b.StopTimer()
		confirm(b, s)
		b.StartTimer()
	}
	quantiles(b, took)
}

// BenchmarkCommitConfirm is a Commit and its Confirm, durable.
func BenchmarkCommitConfirm(b *testing.B) {
	s, _ := newFixture(b).open()
	applied(b, s, 1024)
	var took, idle []time.Duration
	for i := 0; b.Loop(); i++ {
		rec := benchChange(i)
		start := time.Now()
		commit(b, s, rec)
		confirm(b, s)
		took = append(took, time.Since(start))
		b.StopTimer()
		start = time.Now()
		s.Prepare(b.Context(), "") // as the agent does, while nobody waits
		idle = append(idle, time.Since(start))
		b.StartTimer()
	}
	quantiles(b, took)
	slices.Sort(idle)
	b.ReportMetric(float64(idle[len(idle)/2].Microseconds()), "prepare-p50-us")
	b.ReportMetric(float64(idle[len(idle)-1].Microseconds()), "prepare-max-us")
}

// BenchmarkFloor is the least that a durable record of three files and a ref
// costs when each is written and synced plainly: three files, a temporary ref,
// a rename, the directory.
func BenchmarkFloor(b *testing.B) {
	dir := b.TempDir()
	content := bytes.Repeat([]byte("0123456789abcdef"), 30)
	sync := func(path string) {
		f, err := os.Open(path)
		if err == nil {
			err = f.Sync()
		}
		if err != nil {
			b.Fatal(err)
		}
		_ = f.Close()
	}
	var took []time.Duration
	for i := 0; b.Loop(); i++ {
		start := time.Now()
		for k := range 3 {
			path := filepath.Join(dir, fmt.Sprintf("object-%d-%d", i, k))
			if err := os.WriteFile(path, content, 0o600); err != nil {
				b.Fatal(err)
			}
			sync(path)
		}
		tmp := filepath.Join(dir, "ref.tmp")
		if err := os.WriteFile(tmp, content[:41], 0o600); err != nil {
			b.Fatal(err)
		}
		if err := os.Rename(tmp, filepath.Join(dir, "ref")); err != nil {
			b.Fatal(err)
		}
		sync(dir)
		took = append(took, time.Since(start))
	}
	quantiles(b, took)
}

// BenchmarkList50 lists the default page of a warm Reader.
func BenchmarkList50(b *testing.B) {
	f := newFixture(b)
	s, _ := f.open()
	for i := range 200 {
		commit(b, s, benchChange(i))
	}
	confirm(b, s)
	r, err := OpenReader(f.dir)
	if err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for b.Loop() {
		start := time.Now()
		if records, err := r.List(b.Context(), "", 50); err != nil || len(records) != 50 {
			b.Fatal(len(records), err)
		}
		took = append(took, time.Since(start))
	}
	quantiles(b, took)
}

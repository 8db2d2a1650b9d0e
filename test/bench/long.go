package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"text/tabwriter"
	"time"

	"golang.org/x/sys/unix"

	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// A stretch is a thousand records of a long history, as they were written, and
// how the repository stood after them.
type stretch struct {
	commits, durable []time.Duration
	files            int
	bytes            int64
	open, list, cold time.Duration
	killed           time.Duration // an open after a kill
	rss              int           // kB of the process that writes
}

// long writes a history of n records as the agent does, prints the curve, and
// measures how soon an agent is ready on it.
func (b *bed) long(n, keep, starts int) error {
	t := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "RECORDS\tCOMMIT p50\tDURABLE p50\tFILES\tBYTES EACH\tOPEN\tLIST 50\tLIST 50 COLD\tRSS MB")
	const step = 1000
	var all []stretch
	for done := 0; done < n; {
		count := min(step, n-done)
		s, err := b.stretch(done, count, keep)
		if err != nil {
			return err
		}
		done += count
		all = append(all, s)
		fmt.Fprintf(t, "%d\t%s\t%s\t%d\t%d\t%s\t%s\t%s\t%.1f\n", done, ms(quantile(s.commits, 0.5)), ms(quantile(s.durable, 0.5)),
			s.files, s.bytes/int64(done), ms(s.open), ms(s.list), ms(s.cold), float64(s.rss)/1000)
		_ = t.Flush()
	}
	if err := b.start(); err != nil {
		return err
	}
	ready, err := b.ready(starts)
	if err != nil {
		return err
	}
	b.stop()
	first, last := all[0], all[len(all)-1]
	ratio := func(a, b []time.Duration) string {
		return fmt.Sprintf("%.2f", float64(quantile(a, 0.5))/float64(quantile(b, 0.5)))
	}
	heading()
	show(
		row{name: "commit, last thousand / first", note: ratio(last.commits, first.commits), budget: "1.20"},
		row{name: "commit and confirm, last thousand / first", note: ratio(last.durable, first.durable), budget: "1.20"},
		row{name: "files in all", note: strconv.Itoa(last.files), budget: "1000, and 0.05 a snapshot"},
		row{name: "bytes a snapshot", note: strconv.FormatInt(last.bytes/int64(n), 10), budget: "1024"},
		row{name: "open after a clean stop", note: ms(last.open) + " ms", budget: "5"},
		row{name: "open after a kill", note: ms(last.killed) + " ms", budget: "60"},
		row{name: "list of 50", note: ms(last.list) + " ms", budget: "5"},
		ready,
	)
	return nil
}

// stretch writes the records from done on, and measures.
func (b *bed) stretch(done, count, keep int) (s stretch, err error) {
	ctx := context.Background()
	host, _ := os.Hostname()
	opt := gitstore.Options{Dir: b.state, Environment: "production", Instance: host, AgentVersion: "bench", KeepSnapshots: keep}
	store, _, err := gitstore.Open(ctx, opt)
	if err != nil {
		return s, err
	}
	before := ""
	for i := done; i < done+count; i++ {
		rec := longRecord(i)
		start := time.Now()
		snap, err := store.Commit(ctx, rec)
		if err != nil {
			return s, err
		}
		s.commits = append(s.commits, time.Since(start))
		if err := store.Confirm(ctx); err != nil {
			return s, err
		}
		s.durable = append(s.durable, time.Since(start))
		store.Prepare(ctx, before)
		before = snap.ID
	}
	s.rss = residentKB(os.Getpid())
	if s.killed, err = openCopy(ctx, opt); err != nil {
		return s, err
	}
	if err := store.Close(); err != nil {
		return s, err
	}
	if s.files, s.bytes, err = size(filepath.Join(b.state, "snapshots.git")); err != nil {
		return s, err
	}
	return s, s.reading(ctx, opt)
}

// openCopy measures what a start takes on a copy of what a writer has open, as a kill
// leaves it.
func openCopy(ctx context.Context, opt gitstore.Options) (time.Duration, error) {
	var opens []time.Duration
	for range 3 {
		dir := opt.Dir + ".copy"
		if err := errors.Join(os.RemoveAll(dir), os.CopyFS(dir, os.DirFS(opt.Dir))); err != nil {
			return 0, err
		}
		killed := opt
		killed.Dir = dir
		if err := os.Chmod(dir, 0o700); err != nil {
			return 0, err
		}
		unix.Sync() // the copy, which a start would wait for
		start := time.Now()
		store, _, err := gitstore.Open(ctx, killed)
		opens = append(opens, time.Since(start))
		if err != nil {
			return 0, err
		}
		if err := errors.Join(store.Close(), os.RemoveAll(dir)); err != nil {
			return 0, err
		}
	}
	return quantile(opens, 0.5), nil
}

// reading measures what a start and a listing take.
func (s *stretch) reading(ctx context.Context, opt gitstore.Options) error {
	var opens, cold, warm []time.Duration
	for range 5 {
		start := time.Now()
		store, repairs, err := gitstore.Open(ctx, opt)
		opens = append(opens, time.Since(start))
		if err != nil || len(repairs) > 0 {
			return fmt.Errorf("open: %w, with repairs %v", err, repairs)
		}
		if err := store.Close(); err != nil {
			return err
		}
		start = time.Now()
		r, err := gitstore.OpenReader(opt.Dir)
		if err != nil {
			return err
		}
		for _, took := range []*[]time.Duration{&cold, &warm} {
			if list, err := r.List(ctx, "", 50); err != nil || len(list) == 0 {
				return fmt.Errorf("list: %d records, %w", len(list), err)
			}
			*took = append(*took, time.Since(start))
			start = time.Now()
		}
		if err := r.Close(); err != nil {
			return err
		}
	}
	s.open, s.cold, s.list = quantile(opens, 0.5), quantile(cold, 0.5), quantile(warm, 0.5)
	return nil
}

// production are the rules of what is recorded here.
var production = schema.Default().For("production")

// longRecord is a change of usual size, another one each time.
func longRecord(i int) record.Record {
	config := production.Defaults().With("cache_ttl_seconds", schema.Int(1+i%80000))
	before := config.With("cache_ttl_seconds", schema.Int(1+(i+79999)%80000))
	rec := record.Record{
		Kind: record.KindChange, Config: config, RollbackPoint: true, Description: fmt.Sprintf("State %d of a long history", i),
		Source:     record.Source{Kind: "git", Location: "https://git.example.com/team/dtesn.git", Revision: fmt.Sprintf("%040x", i*2654435761), Author: "Ada L <ada@example.org>", Subject: fmt.Sprintf("Set state %d", i)},
		Provenance: schema.Provenance{}, Changes: production.Diff(before, config),
	}
	for line, name := range config.Names() {
		rec.Provenance[name] = schema.Origin{Position: schema.Position{File: "production.yaml", Line: line + 3, Column: 3}, Layer: "environment"}
	}
	return rec
}

// size counts the files below dir and their bytes.
func size(dir string) (files int, bytes int64, err error) {
	err = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		info, err := d.Info()
		if err == nil {
			files++
			bytes += info.Size()
		}
		return err
	})
	return files, bytes, err
}

var vmRSS = regexp.MustCompile(`(?m)^VmRSS:\s+(\d+) kB`)

// residentKB is the resident memory of a process, 0 if it cannot be read.
func residentKB(pid int) int {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if m := vmRSS.FindSubmatch(text); err == nil && m != nil {
		kb, _ := strconv.Atoi(string(m[1]))
		return kb
	}
	return 0
}

//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"dtesn-agent/apply"
	"dtesn-agent/cmd/agent/events"
	"dtesn-agent/gitstore"
	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// check holds what must be true whenever the agent has come to rest: engine,
// refs and status agree, what was reported is on record, git finds nothing
// broken, and nothing is left over.
func (w *world) check(v *apply.Status) error {
	err := w.readLog()
	if err == nil {
		err = w.checkHistory(v)
	}
	if err == nil {
		err = w.checkFiles(v.TotalSnapshots)
	}
	if err == nil {
		err = w.checkEvents()
	}
	if err == nil {
		err = w.receiver.check(w.state)
	}
	if err == nil {
		_, err = w.git("fsck", "--strict", "--no-progress")
	}
	return err
}

func (w *world) git(args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"--git-dir", filepath.Join(w.state, "snapshots.git")}, args...)...)
	cmd.Env = gitEnv()
	out, err := cmd.CombinedOutput()
	if err != nil {
		err = fmt.Errorf("git %s: %w: %s", args[0], err, out)
	}
	return string(out), err
}

// checkHistory reads the history with git alone.
func (w *world) checkHistory(v *apply.Status) error {
	refs, err := w.git("for-each-ref", "--format=%(refname) %(objectname)")
	if err != nil {
		return err
	}
	names := map[string]string{}
	for line := range strings.Lines(refs) {
		name, hash, _ := strings.Cut(strings.TrimSpace(line), " ")
		names[name] = hash
	}
	head := names["refs/heads/"+environment]
	delete(names, "refs/dtesn/retried/"+environment) // there may be one; of a record that is settled it says nothing
	if len(names) != 2 || head == "" || head != names["refs/dtesn/applied/"+environment] {
		return fmt.Errorf("nothing is open, and the refs are\n%s", refs)
	}
	const field = "%x09"
	log, err := w.git("log", "--format=%H"+field+"%(trailers:key=Snapshot-Id,valueonly,separator=)"+field+"%(trailers:key=Outcome-Of,valueonly,separator=)", head)
	if err != nil {
		return err
	}
	records := strings.Split(strings.TrimRight(log, "\n"), "\n")
	if len(records) != v.TotalSnapshots {
		return fmt.Errorf("status counts %d records, git %d", v.TotalSnapshots, len(records))
	}
	there, unsettled := map[string]bool{}, map[string]string{}
	for i, line := range records {
		f := strings.Split(line, "\t")
		if len(f) != 3 {
			return fmt.Errorf("no record: %q", line)
		}
		_, sequence, _ := strings.Cut(strings.TrimPrefix(f[1], "snapshot_"), "_")
		if n, err := strconv.Atoi(sequence); err != nil || n != len(records)-i || there[f[1]] {
			return fmt.Errorf("record %d of the history bears the id %q", len(records)-i, f[1])
		}
		there[f[1]] = true
		if id, outcome, ok := strings.Cut(f[2], " "); ok {
			unsettled[id] = outcome
		}
	}
	for id := range w.reported {
		if !there[id] || unsettled[id] != "" {
			return fmt.Errorf("%s was reported as applied, and the history says: there %v, %q", id, there[id], unsettled[id])
		}
	}
	return w.checkRunning(v, head)
}

// checkRunning holds the head's parameters against status and engine.
func (w *world) checkRunning(v *apply.Status, head string) error {
	tree, err := w.git("cat-file", "blob", head+":parameters.yaml")
	if err != nil {
		return err
	}
	engine, err := w.runs()
	if err != nil {
		return fmt.Errorf("ask the engine: %w", err)
	}
	if v.Current == nil || string(v.Current.YAML()) != tree || string(engine.YAML()) != tree {
		return fmt.Errorf("the head says\n%sthe engine runs\n%sstatus says %+v", tree, engine.YAML(), v.Current)
	}
	if intOf(engine, sizeName) == tooBig {
		return errors.New("the engine runs what it refuses")
	}
	if r := v.Running; !r.Confirmed || r.Revision == "" {
		return fmt.Errorf("at rest, and what runs is not confirmed: %+v", r)
	}
	return nil
}

// checkEvents holds the log of events against the history: each record that came to
// something has its events, once, under rising numbers.
func (w *world) checkEvents() error {
	r, err := gitstore.OpenReader(w.state)
	if err != nil {
		return err
	}
	defer r.Close()
	rows, err := r.List(context.Background(), "", 1000)
	if err != nil {
		return err
	}
	var begin apply.Event // the first line, where there was a history before
	text, err := os.ReadFile(filepath.Join(w.state, events.File))
	if line, _, _ := strings.Cut(string(text), "\n"); err == nil && strings.Contains(line, `"type":""`) {
		err = json.Unmarshal([]byte(line), &begin)
	}
	if err != nil {
		return err
	}
	var missing []string
	uerr := until("all events are in the log", func() bool {
		counts, last := map[string]int{}, int64(0)
		for e, rerr := range events.Read(w.state, 0) {
			if rerr != nil || e.Sequence <= last {
				err = errors.Join(rerr, fmt.Errorf("event %d follows %d", e.Sequence, last))
				return true
			}
			last = e.Sequence
			key := keyOf(&e)
			if counts[key]++; key != "" && counts[key] > 1 {
				err = fmt.Errorf("told twice: %s", key)
				return true
			}
		}
		missing = nil
		for i := range rows {
			if rows[i].ID == begin.Record { // what is older was there before the log
				break
			}
			var parent *record.Record
			if i+1 < len(rows) {
				parent = &rows[i+1].Record
			}
			for _, e := range apply.RecordEvents(&rows[i], parent) {
				if key := keyOf(&e); key != "" && counts[key] == 0 {
					missing = append(missing, key)
				}
			}
		}
		return len(missing) == 0
	})
	if uerr != nil {
		return fmt.Errorf("%w: missing %q", uerr, missing[:min(len(missing), 5)])
	}
	return err
}

// Bounds of the state directory: a record is four objects, a kill leaves at
// most the objects of a record that nothing names, and the history is packed
// before there are so many loose ones.
const (
	mostLoose = 1200
	mostPacks = 12
	mostBytes = 2<<20 + 4<<20 // what is allocated ahead, and what so few records take
)

// checkFiles finds leftovers and looks how large the state directory is. The agent may
// be packing: what it has on its way to another place is not left over.
func (w *world) checkFiles(records int) error {
	loose, packs, size := 0, 0, int64(0)
	var leftovers []string
	err := filepath.WalkDir(w.state, func(path string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // packed meanwhile
		}
		if err != nil {
			return err
		}
		rel, _ := filepath.Rel(w.state, path)
		name := d.Name()
		for _, left := range []string{"tmp-", "tmp_", "fetch-", "snapshots.git.new-", "set-aside"} {
			if strings.HasPrefix(name, left) {
				leftovers = append(leftovers, path)
			}
		}
		if strings.HasSuffix(name, ".lock") {
			leftovers = append(leftovers, path)
		}
		switch {
		case d.IsDir():
			return nil
		case strings.HasSuffix(name, ".pack"):
			packs++
		case strings.HasPrefix(rel, "snapshots.git/objects/"):
			loose++
		}
		if info, err := d.Info(); err == nil {
			size += info.Size()
		}
		return nil
	})
	for _, path := range leftovers {
		if err == nil {
			err = until(path+" is removed", func() bool { _, err := os.Lstat(path); return errors.Is(err, fs.ErrNotExist) })
		}
	}
	if err != nil {
		return err
	}
	if most := 4 * (records + w.kills + 1); loose > most+2*packs || loose > mostLoose || packs > mostPacks || size > mostBytes {
		return fmt.Errorf("after %d records and %d kills there are %d loose objects, %d packs, %d bytes", records, w.kills, loose, packs, size)
	}
	return nil
}

// The parameters that the stories change.
const (
	sizeName = "esn_reservoir_size"
	ttlName  = "cache_ttl_seconds"
)

func ttlOf(p schema.Parameters) int { return intOf(p, ttlName) }

// intOf returns an integer of p, -1 if p has none of that name.
func intOf(p schema.Parameters, name string) int {
	if n, ok := p.Get(name).Int(); ok {
		return n
	}
	return -1
}

// A want is what a step comes to rest at.
type want struct {
	state  apply.Condition
	ttl    int // of the cache, in seconds: what tells one state from another
	paused bool
}

func (x want) met(v *apply.Status) bool {
	return v.State == x.state && v.Current != nil && ttlOf(*v.Current) == x.ttl && v.InSync == (x.state == apply.StateInSync) &&
		(v.Held != nil && v.Held.Paused) == x.paused
}

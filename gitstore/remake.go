package gitstore

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"
	"github.com/go-git/go-git/v5/plumbing/object"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
)

// What a whole commit says of a record counts though its content is damaged: what
// kind it is, what it settles, often its Parameters. Without it what lies below
// would be the newest state: a candidate that it rejected, or what an operator went
// back from. So where the content of the applied record, or of a revert or a note
// at the head, is lost for good, the record is remade.

// A wreck is a record to be remade, and what it is to stand on.
type wreck struct {
	*record.Record       // what its commit says
	whole          bool  // all of it can be read, but not what is below
	bad            error // why it must be remade

	lost    []plumbing.Hash    // it, and those below that are lost with it
	base    *record.Record     // the newest whole record below; nil if none
	settled *record.Settlement // what became of the base, if it was not applied
	last    *record.Record     // the newest applied record at the base or below
}

// remake puts a new record in the place of one that the refs named, whose content
// is damaged, and reports whether it did: with its Parameters as far as they are
// known, else with those of the last applied record before it. If it may have
// borne a hold, the new one holds everything. A change of which nothing is known
// is not remade.
func (s *Store) remake(ctx context.Context, head, applied named) (bool, error) {
	w, err := s.wrecked(head, applied)
	if err != nil || w == nil {
		return false, err
	}
	if err := s.checkIdentity(w.Environment, w.Instance); err != nil {
		return false, err
	}
	if err := s.dig(ctx, w); err != nil {
		return false, err
	}
	rec, err := s.recordOf(w)
	if err != nil || rec == nil {
		return false, err
	}
	kept, err := s.keepNamed(ctx, head)
	if err != nil {
		return false, err
	}
	snap, err := s.appendOn(w.base, *rec)
	if err != nil {
		return false, fmt.Errorf("make record %s anew: %w", w.ID, err)
	}
	if s.head, s.applied = snap, applied.snap; applied.snap == nil {
		if err := s.repo.writeRef(applied.ref, hashOf(snap)); err != nil {
			return false, err
		}
		s.applied = snap
	}
	for _, h := range w.lost {
		if err := s.setLostAside(h); err != nil {
			return false, err
		}
	}
	did := "made anew as " + snap.ID
	if snap.Held != nil && snap.Held.Paused {
		did += ", and nothing is tried until agent resume"
	}
	s.explained = true
	s.repaired(fmt.Sprintf("the %s %s is damaged (%v)", w.Kind, w.ID, w.bad), did, kept)
	return true, nil
}

// wrecked is the record to be remade: the applied one, or a revert or a note at
// the head, which somebody was told of; nil if there is none whose commit is whole.
func (s *Store) wrecked(head, applied named) (*wreck, error) {
	for _, n := range []named{head, applied} {
		if !errors.Is(n.bad, errDamaged) {
			continue
		}
		_, index, err := s.repo.link(n.hash)
		if err == nil {
			var w *record.Record
			if w, err = s.repo.remains(n.hash, index, n.bad); err == nil && (n.ref == applied.ref || !w.Kind.Candidate()) {
				_, err = s.repo.snapshot(n.hash)
				return &wreck{Record: w, whole: err == nil, bad: n.bad, lost: []plumbing.Hash{n.hash}}, unlessCurable(err)
			}
		}
		if unlessCurable(err) != nil {
			return nil, err
		}
	}
	return nil, nil
}

// dig goes down from a wreck to the newest record that is whole.
func (s *Store) dig(ctx context.Context, w *wreck) (err error) {
	for child := w.Record; child.Parent != "" && w.base == nil; {
		h := plumbing.NewHash(child.Parent)
		parent, err := s.repo.snapshot(h)
		if err == nil {
			w.base, w.settled = parent, child.OutcomeOf
			break
		}
		if curable(err) {
			parent, err = s.repo.remains(h, child.Index-1, err)
		}
		if curable(err) {
			return s.digOn(ctx, w) // the history is cut here
		}
		if err != nil {
			return err
		}
		w.lost = append(w.lost, h)
		child = parent
	}
	if w.last = w.base; w.base != nil && w.settled != nil {
		w.last, err = s.lastSettled(w.base)
	}
	return err
}

// digOn is dig where the way down cannot be followed. Whether the newest record
// that lies there was applied, nobody knows, unless it was noted.
func (s *Store) digOn(ctx context.Context, w *wreck) (err error) {
	if w.base, w.last, err = s.newestOfHistory(ctx, w.Index); err == nil && w.base != nil && w.last != w.base && w.base.Kind.Candidate() {
		w.settled = &record.Settlement{ID: w.base.ID, Outcome: record.Superseded}
	}
	return err
}

// recordOf is the record that takes the place of a wreck, nil if too little is
// known of it.
func (s *Store) recordOf(w *wreck) (*record.Record, error) {
	config, known, err := s.repo.parametersOf(w.lost[0])
	if err != nil || !known && (w.Kind == record.KindChange || w.last == nil) {
		return nil, err
	}
	c, err := s.repo.commit(w.lost[0])
	if err != nil {
		return nil, err
	}
	title, _, _ := strings.Cut(c.Message, "\n")
	rec := &record.Record{
		Kind: w.Kind, Description: "Made anew: " + title, OutcomeOf: w.settled,
		Config: config, RollbackPoint: w.last != nil || w.Kind.Candidate(),
	}
	if !known {
		rec.Config = w.last.Config
	}
	if w.last != nil && w.last.Config.Equal(rec.Config) {
		rec.Source, rec.Provenance, rec.Experiments = w.last.Source, w.last.Provenance, w.last.Experiments
	}
	switch {
	case w.base == nil:
		rec.Kind = record.KindChange // it is the first one now
	case w.Kind.Candidate():
	case w.settled != nil:
		rec.Kind = record.KindRevert
	default:
		rec.Kind = record.KindNote
	}
	switch {
	case w.whole:
		snap, err := s.repo.snapshot(w.lost[0])
		if err != nil {
			return nil, err
		}
		rec.Held = snap.Held
	case w.Kind != record.KindChange: // a change ends what was held
		rec.Held = &record.Hold{
			Paused: true, By: "operator", Since: record.Unix(s.opts.Now()),
			Reason: "the record of the hold, " + w.ID + ", was damaged; agent resume ends it",
		}
	}
	return rec, nil
}

// appendOn commits a record upon base, durably.
func (s *Store) appendOn(base *record.Record, rec record.Record) (*record.Record, error) {
	s.head = base
	if base != nil {
		c, err := s.repo.commit(hashOf(base))
		if err != nil {
			return nil, err
		}
		s.headTime = c.Committer.When
	}
	snap, err := s.prepare(rec)
	if err != nil {
		return nil, err
	}
	dirs, files, err := s.append(snap, true)
	if err != nil {
		return nil, err
	}
	s.headFiles = files
	return snap, syncPaths(dirs, nil)
}

var rollbackTarget = regexp.MustCompile(`Rollback to (snapshot_[0-9]+_[0-9]+)`)

// parametersOf are the Parameters of a record that may be damaged: from what can
// be read of it, or by its kind, from the record that it repeats.
func (r *repo) parametersOf(h plumbing.Hash) (p schema.Parameters, known bool, err error) {
	for {
		if snap, err := r.snapshot(h); err == nil {
			return snap.Config, true, nil
		}
		c, err := r.commit(h)
		if err != nil {
			return p, false, unlessCurable(err)
		}
		if p, known, err = r.listedParameters(c.TreeHash); known || err != nil {
			return p, known, err
		}
		t, err := parseTrailers(c.Message)
		if err != nil || len(c.ParentHashes) == 0 {
			return p, false, nil
		}
		found := true
		switch _, settles := t[keyOutcomeOf]; {
		case t[keyKind] == string(record.KindRollback):
			h, found, err = r.targetOf(c)
		case t[keyKind] == string(record.KindRevert) && settles:
			h, found, err = r.appliedBelow(c.ParentHashes[0])
		case t[keyKind] == string(record.KindRevert), t[keyKind] == string(record.KindNote):
			h = c.ParentHashes[0]
		default:
			found = false
		}
		if err != nil || !found {
			return p, false, unlessCurable(err)
		}
	}
}

// derive writes the parameters.yaml of a record anew that is damaged, from its
// snapshot.json, which says the same.
func (s *Store) derive(n named) (bool, error) {
	c, err := s.repo.commit(n.hash)
	if err != nil || !errors.Is(n.bad, errDamaged) {
		return false, unlessCurable(err)
	}
	blobs := s.repo.blobs(c.TreeHash)
	if len(blobs) == 0 {
		return false, nil
	}
	text, err := s.repo.object(plumbing.BlobObject, blobs[1])
	snap := new(record.Record)
	if err != nil || json.Unmarshal(text, snap) != nil {
		return false, unlessCurable(err)
	}
	file, err := s.objects.encode(plumbing.BlobObject, snap.Config.YAML())
	if err != nil || file.hash != blobs[0] {
		return false, err
	}
	wrote, err := s.restoreObject(file)
	if err != nil || !wrote {
		return false, err
	}
	s.repaired(fmt.Sprintf("%s of the record %s is damaged", parametersFile, snap.ID), "written anew from its "+snapshotFile, "")
	return true, s.objects.sync()
}

// listedParameters reads parameters.yaml of a tree, if it can be read.
func (r *repo) listedParameters(h plumbing.Hash) (p schema.Parameters, known bool, err error) {
	blobs := r.blobs(h)
	if len(blobs) == 0 {
		return p, false, nil
	}
	text, err := r.object(plumbing.BlobObject, blobs[0])
	if err != nil {
		return p, false, unlessCurable(err)
	}
	p, err = schema.ParseYAML(text)
	return p, err == nil, nil
}

// appliedBelow is the newest record below a candidate that the one upon it did not
// gainsay.
func (r *repo) appliedBelow(h plumbing.Hash) (plumbing.Hash, bool, error) {
	for {
		c, err := r.commit(h)
		if err != nil || len(c.ParentHashes) == 0 {
			return h, false, err
		}
		t, err := parseTrailers(c.Message)
		if err != nil {
			return h, false, nil
		}
		h = c.ParentHashes[0]
		if _, gainsaid := t[keyOutcomeOf]; !gainsaid {
			return h, true, nil
		}
	}
}

// targetOf is the record that a rollback went to, as its title says.
func (r *repo) targetOf(c *object.Commit) (plumbing.Hash, bool, error) {
	title, _, _ := strings.Cut(c.Message, "\n")
	m := rollbackTarget.FindStringSubmatch(title)
	if m == nil || len(c.ParentHashes) == 0 {
		return plumbing.ZeroHash, false, nil
	}
	index, _ := indexOf(m[1])
	for h := c.ParentHashes[0]; ; {
		parent, at, err := r.link(h)
		if err != nil || at < index || parent.IsZero() && at != index {
			return h, false, err
		}
		if at == index {
			return h, r.bears(h, m[1]), nil
		}
		h = parent
	}
}

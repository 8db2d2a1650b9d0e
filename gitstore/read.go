package gitstore

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"regexp"
	"strconv"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// A view is the repository at one moment: what its two refs named, and the
// index of the oldest record of the head's history.
type view struct {
	head, applied *record.Record
	first         int
}

// total is the number of records that are there.
func (v view) total() int {
	if v.head == nil {
		return 0
	}
	return v.head.Index - v.first + 1
}

// An unknownError says that nothing, or not one thing alone, has the id that
// was asked for. It is
// fs.ErrNotExist, so that a caller can tell it from damage.
type unknownError struct{ text string }

func (e *unknownError) Error() string { return e.text }

func (e *unknownError) Is(target error) bool { return target == fs.ErrNotExist }

// list is the page of at most limit records, newest first, behind before.
// A damaged record is shown as such; where the history cannot be followed any
// further, the records up to there come with the error. It ends without one
// where it was cut.
func (r *repo) list(ctx context.Context, v view, before string, limit int) ([]record.Row, error) {
	if v.head == nil {
		if before != "" {
			return nil, r.unknown(v, before)
		}
		return nil, nil
	}
	start := v.head.Index
	if before != "" {
		h, index, err := r.find(ctx, v, before)
		if err != nil {
			return nil, err
		}
		if index == 0 {
			return nil, fmt.Errorf("find where commit %s stands: %w", h, errDamaged)
		}
		start = index - 1
	}
	records := make([]record.Row, 0, max(0, min(limit, start-v.first+1)))
	for index := start; index >= v.first && len(records) < limit; index-- {
		if err := ctx.Err(); err != nil {
			return records, err
		}
		rec, err := r.record(v, index)
		if err != nil {
			return records, fmt.Errorf("list snapshots from record %d on: %w", index, err)
		}
		records = append(records, rec)
	}
	return records, nil
}

// record is the record with the given index, with its outcome. One whose
// commit is whole and whose content is not is returned as what is known of it.
func (r *repo) record(v view, index int) (record.Row, error) {
	h, err := r.chain.at(r, v, index)
	if err != nil {
		return record.Row{}, err
	}
	snap, err := r.snapshot(h)
	if errors.Is(err, errDamaged) || errors.Is(err, errForeign) {
		snap, err = r.remains(h, index, err)
	}
	if err != nil {
		return record.Row{}, err
	}
	return r.judge(v, snap)
}

// judge gives a snapshot the outcome that its child and the applied ref say.
func (r *repo) judge(v view, snap *record.Record) (record.Row, error) {
	rec := record.Row{Record: *snap, Outcome: record.Pending}
	if v.applied != nil && snap.Index <= v.applied.Index {
		rec.Outcome = record.Applied
		rec.IsActive = snap.Commit == v.applied.Commit
	}
	if snap.Index >= v.head.Index {
		return rec, nil
	}
	h, err := r.chain.at(r, v, snap.Index+1)
	if err != nil {
		return rec, err
	}
	child, err := r.snapshot(h)
	if errors.Is(err, errDamaged) || errors.Is(err, errForeign) {
		child, err = r.remains(h, snap.Index+1, err)
	}
	if err != nil {
		return rec, err
	}
	if o := child.OutcomeOf; o != nil && o.ID == snap.ID {
		rec.Outcome = o.Outcome
		if o.Outcome == record.Rejected {
			rec.ValidationErrors = child.Errors
		}
	}
	return rec, nil
}

// remains is what the commit alone says of a record whose content is damaged.
// It is no rollback point, for its Parameters are not known.
func (r *repo) remains(h plumbing.Hash, index int, damage error) (*record.Record, error) {
	c, err := r.commit(h)
	if err != nil {
		return nil, err
	}
	t, err := parseTrailers(c.Message)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", h, errors.Join(damage, err))
	}
	title, _, _ := strings.Cut(c.Message, "\n")
	snap := &record.Record{
		Format: record.Format, Index: index, ID: t[keyID], Kind: record.Kind(t[keyKind]),
		Timestamp: record.Unix(c.Committer.When), Description: oneLine("(damaged) "+title, maxLine),
		Environment: schema.Environment(t[keyEnvironment]), Instance: t[keyInstance],
		Errors: []string{oneLine(damage.Error(), maxLine)},
		Commit: h.String(),
	}
	if len(c.ParentHashes) > 0 {
		snap.Parent = c.ParentHashes[0].String()
	}
	id, outcome, ok := strings.Cut(t[keyOutcomeOf], " ")
	if ok && settles(record.Outcome(outcome)) {
		snap.OutcomeOf = &record.Settlement{ID: id, Outcome: record.Outcome(outcome)}
	}
	return snap, nil
}

// lookup finds a record by what people and programs have of it.
func (r *repo) lookup(ctx context.Context, v view, id string) (record.Row, error) {
	h, _, err := r.find(ctx, v, id)
	if err != nil {
		return record.Row{}, err
	}
	snap, err := r.snapshot(h)
	if err != nil {
		return record.Row{}, &problem.Error{Op: "read snapshot", Place: cut(id, 80), Err: err, Hint: fmt.Sprintf("list the others, which are not touched by it, with `agent snapshots --state %s`", r.state)}
	}
	return r.judge(v, snap)
}

var commitPrefix = regexp.MustCompile(`^[0-9a-f]{4,40}$`)

// find resolves a snapshot id, an index in digits, or a unique prefix of a
// commit, in this order, to the commit and the index of a record.
func (r *repo) find(ctx context.Context, v view, id string) (plumbing.Hash, int, error) {
	index, ok := indexOf(id)
	if ok {
		h, err := r.chain.at(r, v, index)
		if err == nil && r.bears(h, id) {
			return h, index, nil
		}
		if err != nil && !errors.Is(err, errNoSuchIndex) {
			return h, 0, fmt.Errorf("find snapshot %q: %w", cut(id, 80), err)
		}
		return h, 0, r.unknown(v, id)
	}
	if index, err := strconv.Atoi(id); err == nil && id == strconv.Itoa(index) {
		h, err := r.chain.at(r, v, index)
		if err == nil || !errors.Is(err, errNoSuchIndex) {
			return h, index, err
		}
	}
	if !commitPrefix.MatchString(id) || v.head == nil {
		return plumbing.ZeroHash, 0, r.unknown(v, id)
	}
	return r.findPrefix(ctx, v, id)
}

// bears reports whether the commit's record has the id.
func (r *repo) bears(h plumbing.Hash, id string) bool {
	if snap := r.cache.get(h); snap != nil {
		return snap.ID == id
	}
	c, err := r.commit(h)
	if err != nil {
		return false
	}
	t, err := parseTrailers(c.Message)
	return err == nil && t[keyID] == id
}

func (r *repo) findPrefix(ctx context.Context, v view, prefix string) (plumbing.Hash, int, error) {
	var found plumbing.Hash
	index := 0
	for i := v.head.Index; i >= v.first; i-- {
		if err := ctx.Err(); err != nil {
			return found, 0, err
		}
		h, err := r.chain.at(r, v, i)
		if err != nil {
			return found, 0, fmt.Errorf("find commit %s: %w", prefix, err)
		}
		if !strings.HasPrefix(h.String(), prefix) {
			continue
		}
		if index != 0 {
			return found, 0, problem.New("", &unknownError{fmt.Sprintf("commit prefix %s is not unique: records %d and %d both begin with it", prefix, index, i)}, "give more digits")
		}
		found, index = h, i
	}
	if index == 0 {
		return found, 0, r.unknown(v, prefix)
	}
	return found, index, nil
}

// unknown returns the error that no record is meant by id: with the nearest one
// and the newest ones.
func (r *repo) unknown(v view, id string) error {
	if v.head == nil {
		return problem.New("", &unknownError{fmt.Sprintf("no snapshot %q: the history in %s is empty", cut(oneLine(id, maxLine), 80), r.state)}, "apply a configuration: the first one makes the first snapshot")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "no snapshot %q", cut(oneLine(id, maxLine), 80))
	index, ok := indexOf(id)
	if !ok {
		if n, err := strconv.Atoi(id); err == nil {
			index, ok = n, true
		}
	}
	switch {
	case ok && index >= 1 && index < v.first:
		fmt.Fprintf(&b, "; the history begins at record %d, what was before is not kept (pruned, or lost to damage)", v.first)
	case ok && index >= 1 && index < v.head.Index:
		if rec, err := r.record(v, index); err == nil {
			fmt.Fprintf(&b, "; record %d is %s", index, rec.ID)
		}
	}
	b.WriteString("; the newest are ")
	for i := v.head.Index; i >= v.first && i > v.head.Index-3; i-- {
		rec, err := r.record(v, i)
		if err != nil {
			break
		}
		if i < v.head.Index {
			b.WriteString(", ")
		}
		b.WriteString(rec.ID)
	}
	return problem.New("", &unknownError{b.String()}, fmt.Sprintf("list them all with `agent snapshots --state %s`", r.state))
}

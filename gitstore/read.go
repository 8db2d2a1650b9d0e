package gitstore

import (
	"cmp"
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
func (r *repo) list(ctx context.Context, v view, before string, limit int) (rows []record.Row, err error) {
	var behind place
	if before != "" {
		if behind, err = r.find(ctx, v, before); err != nil {
			return nil, err
		}
	}
	rows = make([]record.Row, 0, min(limit, v.total()))
	werr := r.walk(v, func(p place) bool {
		if behind.index != 0 && p.index >= behind.index {
			return true
		}
		var row record.Row
		if err = ctx.Err(); err == nil {
			row, err = r.row(v, p)
		}
		if err != nil {
			return false
		}
		rows = append(rows, row)
		return len(rows) < limit
	})
	if err = cmp.Or(err, werr); err != nil {
		err = fmt.Errorf("list snapshots: %w", err)
	}
	return rows, err
}

// row is the record at a place, with the outcome that its child and the applied ref
// say.
func (r *repo) row(v view, p place) (record.Row, error) {
	rec, err := r.readable(p.index, p.commit)
	if err != nil {
		return record.Row{}, err
	}
	row := record.Row{Record: *rec, Outcome: record.Pending}
	if v.applied != nil && p.index <= v.applied.Index {
		row.Outcome = record.Applied
		row.IsActive = rec.Commit == v.applied.Commit
	}
	if p.child.IsZero() {
		return row, nil
	}
	child, err := r.readable(p.index+1, p.child)
	if err != nil {
		return row, err
	}
	if o := child.OutcomeOf; o != nil && o.ID == rec.ID {
		row.Outcome = o.Outcome
		if o.Outcome == record.Rejected {
			row.ValidationErrors = child.Errors
		}
	}
	return row, nil
}

// readable returns the record that a commit is. One whose commit is whole and whose
// content is not is what the commit says of it; it is no rollback point, for its
// parameters are not known.
func (r *repo) readable(index int, h plumbing.Hash) (*record.Record, error) {
	rec, damage := r.snapshot(h)
	if !errors.Is(damage, errDamaged) && !errors.Is(damage, errForeign) {
		return rec, damage
	}
	c, err := r.commit(h)
	if err != nil {
		return nil, err
	}
	t, err := parseTrailers(c.Message)
	if err != nil {
		return nil, fmt.Errorf("commit %s: %w", h, errors.Join(damage, err))
	}
	title, _, _ := strings.Cut(c.Message, "\n")
	rec = &record.Record{
		Format: record.Format, Index: index, ID: t[keyID], Kind: record.Kind(t[keyKind]),
		Timestamp: record.Unix(c.Committer.When), Description: problem.Line("(damaged) "+title, maxLine),
		Environment: schema.Environment(t[keyEnvironment]), Instance: t[keyInstance],
		Errors: []string{problem.Line(damage.Error(), maxReason)},
		Commit: h.String(),
	}
	if len(c.ParentHashes) > 0 {
		rec.Parent = c.ParentHashes[0].String()
	}
	id, outcome, ok := strings.Cut(t[keyOutcomeOf], " ")
	if ok && settles(record.Outcome(outcome)) {
		rec.OutcomeOf = &record.Settlement{ID: id, Outcome: record.Outcome(outcome)}
	}
	return rec, nil
}

// lookup finds a record by what people and programs have of it.
func (r *repo) lookup(ctx context.Context, v view, id string) (record.Row, error) {
	p, err := r.find(ctx, v, id)
	if err != nil {
		return record.Row{}, err
	}
	if _, err := r.snapshot(p.commit); err != nil {
		return record.Row{}, &problem.Error{Op: "read snapshot", Place: problem.Cut(id, 80), Err: err, Hint: fmt.Sprintf("list the others, which are not touched by it, with `agent snapshots --state %s`", r.state)}
	}
	return r.row(v, p)
}

var commitPrefix = regexp.MustCompile(`^[0-9a-f]{4,40}$`)

// find resolves a snapshot id, an index in digits, or a unique prefix of a
// commit, in this order.
func (r *repo) find(ctx context.Context, v view, id string) (found place, err error) {
	index, isID := indexOf(id)
	if n, err := strconv.Atoi(id); err == nil && id == strconv.Itoa(n) {
		index = n
	}
	if v.head != nil && index >= v.first && index <= v.head.Index {
		found, err = r.at(v, index)
		if err == nil && isID {
			if rec, rerr := r.readable(index, found.commit); rerr != nil || rec.ID != id {
				return place{}, r.unknown(v, id, index)
			}
		}
		return found, err
	}
	if commitPrefix.MatchString(id) {
		if found, err = r.findPrefix(ctx, v, id); err != nil || found.index != 0 {
			return found, err
		}
	}
	return place{}, r.unknown(v, id, index)
}

func (r *repo) findPrefix(ctx context.Context, v view, prefix string) (found place, err error) {
	werr := r.walk(v, func(p place) bool {
		if err = ctx.Err(); strings.HasPrefix(p.commit.String(), prefix) {
			if found.index != 0 {
				err = problem.New("", &unknownError{fmt.Sprintf("commit prefix %s is not unique: records %d and %d both begin with it", prefix, found.index, p.index)}, "give more digits")
			}
			found = p
		}
		return err == nil
	})
	return found, cmp.Or(err, werr)
}

// unknown returns the error that no record is meant by id, which may stand for an
// index.
func (r *repo) unknown(v view, id string, index int) error {
	text := fmt.Sprintf("no snapshot %q", problem.Line(id, 80))
	if v.head == nil {
		return problem.New("", &unknownError{fmt.Sprintf("%s: the history in %s is empty", text, r.state)}, "apply a configuration: the first one makes the first snapshot")
	}
	if p, err := r.at(v, index); err == nil {
		if rec, err := r.readable(index, p.commit); err == nil {
			text += fmt.Sprintf("; record %d is %s", index, rec.ID)
		}
	} else if index >= 1 && index < v.first {
		text += fmt.Sprintf("; the history begins at record %d, what was before is not kept (pruned, or lost to damage)", v.first)
	}
	return problem.New("", &unknownError{text + "; the newest is " + v.head.ID}, fmt.Sprintf("list them all with `agent snapshots --state %s`", r.state))
}

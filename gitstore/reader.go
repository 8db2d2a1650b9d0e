package gitstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// defaultPage is how many records a listing without a limit has.
const defaultPage = 50

// A Reader reads the history of a state directory, beside a running agent or without
// one. It takes no lock, changes nothing, and is safe for concurrent use. Each call reads
// the journal again. Records that it returns are shared and must not be changed.
type Reader struct {
	repo *repo
	mu   sync.Mutex // so that what was read of the journal gives way to newer things only
}

// OpenReader opens the history in a state directory. The error says what is
// missing, and its hint how it comes to be.
func OpenReader(stateDir string) (*Reader, error) {
	env, err := environmentOf(stateDir)
	if err != nil {
		return nil, err
	}
	return &Reader{repo: newRepo(stateDir, env)}, nil
}

// environmentOf returns whose history the state directory holds.
func environmentOf(state string) (schema.Environment, error) {
	if l, _, _, err := readLedger(state); err == nil && l != nil {
		return l.Environment, nil
	}
	switch id, err := readIdentity(state); {
	case err != nil:
		return "", &problem.Error{Op: "open state directory", Place: state, Err: err, Hint: "run as the user the agent runs as"}
	case id != nil:
		return id.Environment, nil
	}
	if there, err := exists(filepath.Join(state, repoDir)); err == nil && !there {
		return "", problem.New("", fmt.Errorf("no snapshot repository in %s", state), fmt.Sprintf("use the --state that the agent runs with; `agent run --state %s` makes the repository", state))
	}
	return "", problem.New("", fmt.Errorf("the state directory %s is damaged: neither journal nor %s can be read", state, identityFile), "start `agent run` with this --state, which repairs it")
}

// Close gives the files of packs back.
func (r *Reader) Close() error {
	r.repo.closePacks()
	return nil
}

// view reads the history as it is now.
func (r *Reader) view() (view, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	v, err := r.read()
	if err != nil {
		return view{}, &problem.Error{Op: "read the history in", Place: r.repo.state, Err: err, Hint: cmp.Or(problem.Hint(err), "restart the agent, which repairs what it can")}
	}
	return v, nil
}

// read reads the journal, and the refs instead if there is none or if the repository
// is another than the one that the journal is about.
func (r *Reader) read() (v view, err error) {
	l, seg, _, err := readLedger(r.repo.state)
	if err != nil {
		return v, err
	}
	there, err := exists(r.repo.dir)
	if l == nil || err == nil && there && r.repo.isOther(l) {
		return r.tips()
	}
	var refs view
	if seg.damaged { // and no agent has started since: the refs may name newer records
		if refs, err = r.tips(); err != nil {
			return v, err
		}
	}
	objects := l.objects()
	r.repo.journaled.Store(&objects)
	v.first = max(l.First, 1)
	if v.head, err = r.repo.named(l.Head); err == nil {
		v.applied, err = r.repo.named(l.Applied)
	}
	if number(refs.head) > number(v.head) {
		v = refs
	}
	return v, err
}

func (r *Reader) tips() (view, error) {
	r.repo.journaled.Store(nil)
	v, _, err := r.repo.tips()
	if err != nil {
		return v, err
	}
	oldest, err := r.repo.oldest(v.head)
	if v.first = oldest.index; err != nil || v.head != nil {
		return v, err
	}
	if used, err := r.repo.isUsed(); err != nil || used {
		return v, cmp.Or(err, errors.New("there are records, but neither the head nor the applied ref"))
	}
	return v, nil
}

// Applied is the record that is on record as applied, nil while none is.
func (r *Reader) Applied() (*record.Record, error) {
	v, err := r.view()
	return v.applied, err
}

// First is the index of the oldest record that is there: 1, unless the history
// was pruned, or what was before is lost.
func (r *Reader) First() (int, error) {
	v, err := r.view()
	return v.first, err
}

// List returns at most limit records (50 for 0 or less), newest first, beginning behind
// the record named before ("" for the head). A record whose content is damaged is listed
// with a description that says so; where the history cannot be followed, the records up
// to there come with an error.
func (r *Reader) List(ctx context.Context, before string, limit int) ([]record.Row, error) {
	v, err := r.view()
	if err != nil {
		return nil, err
	}
	for {
		records, err := r.repo.list(ctx, v, before, limit)
		if err == nil {
			return records, nil
		}
		// What could not be read may have been pruned a moment ago.
		again, verr := r.view()
		if verr != nil || again.first <= v.first {
			return records, err
		}
		v = again
	}
}

// Lookup finds a record by snapshot id, a unique prefix of at least four hex
// digits of its commit, or its index in digits. The error for one that is not
// there is fs.ErrNotExist to errors.Is; that for a damaged one is not.
func (r *Reader) Lookup(ctx context.Context, id string) (record.Row, error) {
	v, err := r.view()
	if err != nil {
		return record.Row{}, err
	}
	return r.repo.lookup(ctx, v, id)
}

// LookupSource finds the newest change that a source's commit brought, by at least four
// hex digits of its revision. The error for one that is not there is fs.ErrNotExist to
// errors.Is.
func (r *Reader) LookupSource(ctx context.Context, revision string) (record.Row, error) {
	v, err := r.view()
	if err != nil {
		return record.Row{}, err
	}
	return r.repo.lookupSource(ctx, v, revision)
}

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

// An unknownError says that nothing, or not one thing alone, has the id that was asked
// for. It is fs.ErrNotExist, so that a caller can tell it from damage.
type unknownError struct{ text string }

func (e *unknownError) Error() string { return e.text }

func (e *unknownError) Is(target error) bool { return target == fs.ErrNotExist }

// list is Reader.List of v.
func (r *repo) list(ctx context.Context, v view, before string, limit int) (rows []record.Row, err error) {
	if limit <= 0 {
		limit = defaultPage
	}
	var behind place
	if before != "" {
		if behind, err = r.find(ctx, v, before); err != nil {
			return nil, err
		}
	}
	rows = make([]record.Row, 0, min(limit, v.total()))
	for p, err := range r.walk(v) {
		if err == nil && behind.index != 0 && p.index >= behind.index {
			continue
		}
		var row record.Row
		if err = cmp.Or(err, ctx.Err()); err == nil {
			row, err = r.row(v, p)
		}
		if err != nil {
			return rows, fmt.Errorf("list snapshots: %w", err)
		}
		if rows = append(rows, row); len(rows) == limit {
			break
		}
	}
	return rows, nil
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
			row.ValidationErrors, row.RejectedBy = child.Errors, record.RejectedBy(rec, child)
		}
	}
	return row, nil
}

// readable returns the record that a commit is, or what the commit says of it where its
// content is damaged: that is no rollback point, for its parameters are not known.
func (r *repo) readable(index int, h plumbing.Hash) (*record.Record, error) {
	rec, damage := r.snapshot(h)
	if !errors.Is(damage, errDamaged) && !errors.Is(damage, errForeign) {
		return rec, damage
	}
	c, err := r.commit(h)
	if err != nil {
		return nil, err
	}
	t := parseTrailers(c.Message)
	if t[keyID] == "" { // it is no record
		return nil, damage
	}
	title, _, _ := strings.Cut(c.Message, "\n")
	rec = &record.Record{
		Format: record.Format, Index: index, ID: t[keyID], Kind: record.Kind(t[keyKind]), OutcomeOf: settlement(t),
		Timestamp: record.Unix(c.Committer.When), Description: problem.Line("(damaged) "+title, maxLine),
		Subject:     problem.Line("(damaged) "+title, maxLine),
		Environment: schema.Environment(t[keyEnvironment]), Instance: t[keyInstance],
		Errors: []string{problem.Line(damage.Error(), maxReason)},
		Commit: h.String(),
	}
	if len(c.ParentHashes) > 0 {
		rec.Parent = c.ParentHashes[0].String()
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
		found, err = r.findPrefix(ctx, v, "commit prefix", id, func(h plumbing.Hash) (string, error) { return h.String(), nil })
		if err != nil || found.index != 0 {
			return found, err
		}
	}
	return place{}, r.unknown(v, id, index)
}

// findPrefix finds the newest record whose name begins with prefix, the zero place if
// there is none. That records of other names do, too, is an error.
func (r *repo) findPrefix(ctx context.Context, v view, what, prefix string, name func(plumbing.Hash) (string, error)) (found place, err error) {
	whole := ""
	for p, err := range r.walk(v) {
		text := ""
		if err = cmp.Or(err, ctx.Err()); err == nil {
			text, err = name(p.commit)
		}
		switch {
		case err != nil && found.index != 0: // what was found is newer than what cannot be read
			return found, nil
		case err != nil:
			return found, err
		case !strings.HasPrefix(text, prefix):
		case found.index == 0:
			found, whole = p, text
		case text != whole:
			return place{}, problem.New("", &unknownError{fmt.Sprintf("%s %s is not unique: %s and %s both begin with it", what, prefix, whole, text)}, "give more digits")
		}
	}
	return found, nil
}

var sourcePrefix = regexp.MustCompile(`^[0-9a-f]{4,64}$`)

func (r *repo) lookupSource(ctx context.Context, v view, revision string) (record.Row, error) {
	if !sourcePrefix.MatchString(revision) {
		return record.Row{}, r.unknown(v, revision, 0)
	}
	found, err := r.findPrefix(ctx, v, "revision", revision, func(h plumbing.Hash) (string, error) {
		c, err := r.commit(h)
		if err != nil {
			return "", err
		}
		t := parseTrailers(c.Message)
		if t[keyKind] != string(record.KindChange) {
			return "", nil
		}
		return t[keyRevision], nil
	})
	if err == nil && found.index == 0 {
		err = r.unknown(v, revision, 0)
	}
	if err != nil {
		return record.Row{}, err
	}
	return r.row(v, found)
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

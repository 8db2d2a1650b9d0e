package gitstore

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// DefaultMaxSnapshots bounds the default page of a listing.
const DefaultMaxSnapshots = 50

// A Reader reads the history of a state directory: beside a running agent, in
// its process or in another, and without one. It takes no lock, changes
// nothing, and is safe for concurrent use. The refs are read anew by each call;
// what they name is immutable, and the last 256 records stay decoded.
// Snapshots it returns are shared and must not be changed.
type Reader struct{ repo *repo }

// OpenReader opens the history in a state directory. The error says what is
// missing, and its hint how it comes to be.
func OpenReader(stateDir string) (*Reader, error) {
	env, err := environmentOf(stateDir)
	if err != nil {
		return nil, err
	}
	return &Reader{newRepo(stateDir, env)}, nil
}

// environmentOf says whose history the state directory holds: by its identity
// file, else by the branch that HEAD names.
func environmentOf(state string) (schema.Environment, error) {
	info, err := os.Stat(filepath.Join(state, repoDir))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		return "", problem.New("", fmt.Errorf("no snapshot repository in %s", state), fmt.Sprintf("use the --state that the agent runs with; `agent run --state %s` makes the repository", state))
	}
	if err != nil {
		return "", &problem.Error{Op: "open state directory", Place: state, Err: err, Hint: "run as the user the agent runs as"}
	}
	id, err := readIdentity(state)
	if err != nil {
		return "", err
	}
	if id != nil {
		return id.Environment, nil
	}
	head, err := readBounded(filepath.Join(state, repoDir, "HEAD"), maxRef)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("read the history in %s: %w", state, err)
	}
	name, ok := strings.CutPrefix(strings.TrimSpace(string(head)), "ref: refs/heads/")
	if !ok || !validEnvironment(name) {
		return "", problem.New("", fmt.Errorf("the snapshot repository in %s is damaged: neither %s nor HEAD names an environment", state, identityFile), "start `agent run` with this --state, which repairs it")
	}
	return schema.Environment(name), nil
}

// Close gives the files of packs back.
func (r *Reader) Close() error {
	r.repo.closePacks()
	return nil
}

// Environment is whose history this is.
func (r *Reader) Environment() schema.Environment { return r.repo.env }

// view reads the applied ref, the head, and the applied ref again: while both
// move, what was read is not what they named at any one moment, and a record
// that is applied would look pending. It then reads them anew, a few times.
// A head that is not whole is a candidate that a crash cut short: what stands
// is the applied record, as the next start of the agent will find too.
func (r *Reader) view() (view, error) {
	var head, applied *record.Record
	var herr, aerr error
	for range 10 {
		applied, aerr = r.named(appliedRef(r.repo.env))
		head, herr = r.named(headRef(r.repo.env))
		again, err := r.repo.readRef(appliedRef(r.repo.env))
		if aerr != nil || err != nil || applied == nil && again.IsZero() || applied != nil && applied.Commit == again.String() {
			break
		}
	}
	switch {
	case herr == nil && head == nil && applied != nil, herr != nil && aerr == nil && applied != nil:
		head = applied
	case herr != nil || aerr != nil:
		return view{}, &problem.Error{Op: "read the history in", Place: r.repo.state, Err: joined(herr, aerr), Hint: cmp.Or(problem.Hint(joined(herr, aerr)), repairsIt)}
	case head == nil && applied == nil:
		lost, err := r.repo.hasRecords()
		if err != nil {
			return view{}, fmt.Errorf("read the history in %s: %w", r.repo.state, err)
		}
		if lost {
			return view{}, problem.New("", fmt.Errorf("the history in %s cannot be read as it stands: there are records, but neither %s nor %s",
				r.repo.state, headRef(r.repo.env), appliedRef(r.repo.env)), repairsIt)
		}
	}
	if head != nil && applied != nil && applied.Index > head.Index {
		head = applied
	}
	first, err := r.repo.first(head)
	return view{head, applied, first}, err
}

const repairsIt = "restart the agent, which repairs it at its start"

// named reads the record that a ref names; nil if there is no such ref.
func (r *Reader) named(ref string) (*record.Record, error) {
	h, err := r.repo.readRef(ref)
	if err != nil || h == plumbing.ZeroHash {
		return nil, err
	}
	return r.repo.snapshot(h)
}

// Head is the newest record, nil while there is none.
func (r *Reader) Head() (*record.Record, error) {
	v, err := r.view()
	return v.head, err
}

// Applied is the record that is on record as applied, nil while none is.
func (r *Reader) Applied() (*record.Record, error) {
	v, err := r.view()
	return v.applied, err
}

// Total is the number of records that are there.
func (r *Reader) Total() (int, error) {
	v, err := r.view()
	return v.total(), err
}

// First is the index of the oldest record that is there: 1, unless the history
// was pruned, or what was before is lost.
func (r *Reader) First() (int, error) {
	v, err := r.view()
	return v.first, err
}

// ActiveCount is how many of the newest limit records are applied states; limit
// 0 or less stands for DefaultMaxSnapshots.
func (r *Reader) ActiveCount(limit int) (int, error) {
	records, err := r.List(context.Background(), "", limit)
	n := 0
	for i := range records {
		if records[i].Outcome == record.Applied {
			n++
		}
	}
	return n, err
}

// List returns at most limit records, newest first, beginning behind the record
// named before ("" for the head); limit 0 or less stands for
// DefaultMaxSnapshots. A record whose content is damaged is listed with a
// description that says so; where the history cannot be followed, the records
// up to there come with an error.
func (r *Reader) List(ctx context.Context, before string, limit int) ([]record.Row, error) {
	v, err := r.view()
	if err != nil {
		return nil, err
	}
	if limit <= 0 {
		limit = DefaultMaxSnapshots
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

// An identity is what <state>/identity holds: whose state directory it is.
type identity struct {
	Environment schema.Environment `json:"environment"`
	Instance    string             `json:"instance"`
}

// readIdentity reads <state>/identity; nil if it is missing or torn, for the
// newest record says the same.
func readIdentity(state string) (*identity, error) {
	data, err := readBounded(filepath.Join(state, identityFile), maxRef)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errTooLarge) {
		return nil, nil
	}
	if err != nil {
		return nil, stateError("read", state, err)
	}
	id := new(identity)
	if json.Unmarshal(data, id) != nil || !validEnvironment(string(id.Environment)) || id.Instance == "" {
		return nil, nil
	}
	return id, nil
}

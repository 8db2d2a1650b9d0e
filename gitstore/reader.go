package gitstore

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// DefaultMaxSnapshots bounds the default page of a listing.
const DefaultMaxSnapshots = 50

// A Reader reads the history of a state directory: beside a running agent, in
// its process or in another, and without one. It takes no lock, changes
// nothing, and is safe for concurrent use. The journal is read anew by each call;
// records are immutable, and up to 256 stay decoded.
// Snapshots it returns are shared and must not be changed.
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
	info, err := os.Stat(filepath.Join(state, repoDir))
	if errors.Is(err, fs.ErrNotExist) || err == nil && !info.IsDir() {
		if l, _, _, err := readLedger(state); err == nil && l != nil {
			return l.Environment, nil
		}
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
	if l, _, _, err := readLedger(state); err == nil && l != nil {
		return l.Environment, nil
	}
	return "", problem.New("", fmt.Errorf("the state directory %s is damaged: neither journal nor %s can be read", state, identityFile), "start `agent run` with this --state, which repairs it")
}

// Close gives the files of packs back.
func (r *Reader) Close() error {
	r.repo.closePacks()
	return nil
}

// view reads the journal, and the refs instead if there is none or if the repository
// is another than the one that the journal is about.
func (r *Reader) view() (v view, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	defer func() {
		if err != nil {
			v, err = view{}, &problem.Error{Op: "read the history in", Place: r.repo.state, Err: err, Hint: cmp.Or(problem.Hint(err), "restart the agent, which repairs what it can")}
		}
	}()
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

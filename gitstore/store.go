package gitstore

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/go-git/go-git/v5/plumbing"

	"dtesn-agent/gitstore/record"
	"dtesn-agent/schema"
	"dtesn-agent/schema/problem"
)

// Options say which history to open, and for whom.
type Options struct {
	Dir string // the state directory, made with mode 0700 if it is missing
	// Environment and Instance are whose history it is; that of others is refused.
	Environment   schema.Environment
	Instance      string
	KeepSnapshots int              // how many of the newest records pruning keeps; 0 keeps all
	AgentVersion  string           // for records that do not have one
	Now           func() time.Time // the clock; nil is time.Now
	Logger        *slog.Logger     // nil is none
}

// A Store is the one writer of a history. Its methods are called from one
// goroutine at a time, but for Holding. Records that it returns are shared and
// must not be changed.
type Store struct {
	opts    Options
	log     *slog.Logger
	lock    *writerLock                // nil while the directory is away, see reacquire
	holding atomic.Pointer[writerLock] // lock, for other goroutines

	history
	reload  bool // the history could not be read whole, and has to be read again
	repairs []record.Repair
}

// A history is what is known of the state directory.
type history struct {
	journal       journal
	ledger        *ledger
	repo          *repo
	head, applied *record.Record

	projection *projection // what is being written to git, nil if nothing is
	unsynced   []entry     // what it has, and maybe not on the disk
	behind     error       // why it lacks what the journal has
	checkpoint *checkpoint // what is being packed, nil if nothing is
	packed     []entry     // what is in a pack, and maybe in loose files still
	packError  error       // why the last checkpoint failed
	mendError  error       // why HEAD, config, packed-refs or shallow could not be put right
	torn       bool        // a sync of the repository failed: the next start looks at all of it
}

const (
	formatFile   = "format"
	identityFile = "identity"
	setAsideDir  = "set-aside"
	// markerFile in the repository says which one the journal is about; `git clone`
	// does not copy it.
	markerFile  = "dtesn-agent"
	newRepoGlob = repoDir + ".new-*"
	// storeFormat is in formatFile. An agent that knows format 1 alone refuses it.
	storeFormat = 2

	opOpen     = "open the snapshot repository"
	upgradeIt  = "upgrade the agent or choose another --state"
	maxRepairs = 100
)

// validEnvironment reports whether a name can be a branch and a file name.
var validEnvironment = regexp.MustCompile(`^[a-z][a-z0-9-]{0,62}$`).MatchString

// Open takes the lock of a state directory and reads the history, or begins one. It
// repairs what a kill, a power cut or a person left behind, and returns what it
// repaired, in order. Errors have a hint: another agent holds the lock, the directory
// is of another environment or instance or a newer agent, or cannot be used.
func Open(ctx context.Context, opts Options) (*Store, []record.Repair, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, fmt.Errorf("open state directory %s: %w", opts.Dir, err)
	}
	if err := opts.check(); err != nil {
		return nil, nil, err
	}
	err := os.MkdirAll(filepath.Dir(opts.Dir), 0o755)
	if err == nil {
		err = os.Mkdir(opts.Dir, 0o700)
	}
	if err != nil && !errors.Is(err, fs.ErrExist) {
		return nil, nil, stateError("make", opts.Dir, err)
	}
	s := &Store{opts: opts, log: opts.Logger}
	if err := s.take(ctx, nil); err != nil {
		return nil, nil, err
	}
	s.lock.marking.Wait()
	return s, s.Repairs(), nil
}

func (o *Options) check() error {
	if o.Dir == "" {
		return problem.New(opOpen, errors.New("no state directory is given"), "use --state DIR")
	}
	if !validEnvironment(string(o.Environment)) {
		return problem.New(opOpen, fmt.Errorf("%q is no environment", o.Environment), "use --environment with a name of the schema, such as production")
	}
	if o.Instance == "" || problem.Line(o.Instance, maxLine) != o.Instance {
		return problem.New(opOpen, fmt.Errorf("%q is no instance name", problem.Cut(o.Instance, 80)), fmt.Sprintf("give --instance one line of 1 to %d bytes without control characters", maxLine))
	}
	o.Dir = filepath.Clean(o.Dir)
	if o.Now == nil {
		o.Now = time.Now
	}
	o.Logger = cmp.Or(o.Logger, slog.New(slog.DiscardHandler))
	return nil
}

// Close makes a checkpoint and gives the lock up. What is committed and not confirmed
// stays pending, as after a kill.
func (s *Store) Close() error {
	if s.lock == nil {
		return nil
	}
	err := s.join()
	if err == nil && s.lock.stands() && !s.reload {
		s.finishCheckpoint()
		s.makeCheckpoint() // of what was committed while the first one ran
		s.removeLoosePacked(len(s.packed))
		err = errors.Join(s.mendJournal(), s.syncProjection())
	}
	clean := err == nil && s.Lost() == nil && !s.reload && s.behind == nil && s.mendError == nil && !s.torn && !s.journal.failed
	return errors.Join(err, s.letGo(clean))
}

// Head is the newest record, nil while there is none.
func (s *Store) Head() *record.Record { return s.head }

// Applied is the record that is on record as applied, nil if none is.
func (s *Store) Applied() *record.Record { return s.applied }

// Total is the number of records that are kept.
func (s *Store) Total() int { return s.view().total() }

func (s *Store) view() view { return view{s.head, s.applied, max(s.ledger.First, 1)} }

// Lookup is Reader.Lookup on what the Store has.
func (s *Store) Lookup(ctx context.Context, id string) (record.Row, error) {
	return s.repo.lookup(ctx, s.view(), id)
}

// List is Reader.List on what the Store has.
func (s *Store) List(ctx context.Context, before string, limit int) ([]record.Row, error) {
	return s.repo.list(ctx, s.view(), before, limit)
}

// Behind returns why the git repository lacks records that the journal has, nil if it
// lacks none. They are written as soon as that is possible.
func (s *Store) Behind() error { return cmp.Or(s.behind, s.packError, s.mendError) }

// Repairs returns what Open and the calls since repaired: the last maxRepairs.
func (s *Store) Repairs() []record.Repair { return slices.Clone(s.repairs) }

func (s *Store) repaired(found, did, kept string) {
	r := record.Repair{At: record.Unix(s.opts.Now()), Found: found, Did: did, Kept: kept}
	if !s.reload {
		s.logRepair(r)
	}
	s.repairs = append(s.repairs, r)
	if len(s.repairs) > maxRepairs { // the log has them all
		s.repairs = slices.Delete(s.repairs, 0, len(s.repairs)-maxRepairs)
	}
}

func (s *Store) logRepair(r record.Repair) {
	s.log.Warn("repaired the snapshot repository", "found", r.Found, "did", r.Did, "kept", r.Kept)
}

// lostFact is the name of the fact that Lost returns.
const lostFact = "lost"

// Lost returns a pause if there was a history of which nothing can be read: what an
// operator held is not known. It outlives restarts; ClearLost ends it.
func (s *Store) Lost() *record.Hold {
	text := s.ledger.Facts[lostFact]
	if text == nil {
		return nil
	}
	lost := new(record.Hold)
	_ = json.Unmarshal(text, lost) // it never fails
	lost.Paused = true
	return lost
}

// ClearLost ends what Lost returns, durably.
func (s *Store) ClearLost(ctx context.Context) error {
	err := s.ready(ctx)
	if err == nil {
		err = s.setFact(lostFact, nil)
	}
	if err != nil {
		return fmt.Errorf("end the pause: %w", err)
	}
	return nil
}

// Fact returns what SetFact kept, nil if there is none.
func (s *Store) Fact(name string) []byte { return s.ledger.Facts[name] }

// SetFact keeps a value of at most 4 KiB under a name, durably; an empty one is none.
func (s *Store) SetFact(ctx context.Context, name string, value []byte) error {
	if len(name)+len(value) > maxFact || strings.ContainsRune(name, 0) || name == lostFact {
		return fmt.Errorf("set fact %s: over %d bytes, or reserved", problem.Cut(name, 80), maxFact)
	}
	err := s.ready(ctx)
	if err == nil {
		err = s.setFact(name, value)
	}
	if err != nil {
		return fmt.Errorf("set fact %s: %w", name, err)
	}
	return nil
}

func (s *Store) setFact(name string, value []byte) error {
	if bytes.Equal(s.ledger.Facts[name], value) {
		return nil
	}
	reserve := name == lostFact // an operator must not be kept waiting by a full disk
	return s.set(frameSet, setPayload(name, value), reserve)
}

// hashOf is the commit of a record, zero if there is none.
func hashOf(rec *record.Record) plumbing.Hash {
	if rec == nil {
		return plumbing.ZeroHash
	}
	return plumbing.NewHash(rec.Commit)
}

func idOf(head *record.Record) string {
	if head == nil {
		return "an empty history"
	}
	return string(head.Kind) + " " + head.ID
}
